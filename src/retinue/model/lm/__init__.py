"""Language models: one accessor over transformers' causal LMs, our own where those fall short."""

from retinue.core.registry import Registry

LMS: Registry[type] = Registry("lm", {"causal": "retinue.model.lm.causal:CausalLM"})
