"""Any transformers causal LM whose layers take keywords and use the attention interface.

Legend: B rows, T tokens, D width, V vocabulary, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from retinue.model.lm.base import LanguageModel
from retinue.model.lm.support import causal_class, check_built
from retinue.model.ropes.base import replace_dynamic
from retinue.ops.cross_entropy import linear_cross_entropy
from retinue.ops.interface import register_attention
from retinue.ops.plan import plan_cached, plan_documents
from retinue.ops.route import Routes
from retinue.types import Cache, LMInputs

ATTENTION = "retinue"


class CausalLM(LanguageModel):
    """A transformers causal LM that lent us its children, so that key names stay its own.

    Reference: transformers 5.23, AttentionInterface and PreTrainedModel.
    """

    def __init__(self, config: Any, *, rope: str = "sequence") -> None:
        super().__init__()
        register_attention()
        kind = causal_class(config)
        config._attn_implementation = ATTENTION
        shell: Any = kind(config)
        replace_dynamic(shell, config, kind=rope)
        check_built(shell, name=f"{kind.__name__} ({config.model_type})")
        self.config = config
        self.base_name = shell.base_model_prefix
        embeddings, head = shell.get_input_embeddings(), shell.get_output_embeddings()
        embeddings.padding_idx = None  # the padding token may be eos, which must learn
        for name, child in shell.named_children():
            self.add_module(name, child)
        names = {id(module): name for name, module in self.named_modules()}
        self.embed_name, self.head_name = names[id(embeddings)], names[id(head)]
        self.tied = dict(getattr(shell, "_tied_weights_keys", None) or {})
        if not config.tie_word_embeddings:
            self.tied = {}
        # transformers collects these from children, and puts the child's name in front
        self._tp_plan = dict(shell._tp_plan or {})
        self._ep_plan = dict(shell._ep_plan or {})
        self._pp_plan = dict(shell._pp_plan or {})
        self._no_split_modules = set(shell._no_split_modules or ())

    @property
    def base(self) -> Any:
        return self.get_submodule(self.base_name)

    @property
    def head(self) -> Any:
        return self.get_submodule(self.head_name)

    @property
    def embedding(self) -> Any:
        return self.get_submodule(self.embed_name)

    @property
    def width(self) -> int:
        return int(self.head.in_features)

    @property
    def layers(self) -> Sequence[nn.Module]:
        lists = [m for m in self.base.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=len)  # type: ignore[arg-type]

    def embed(self, tokens_BT: Tensor) -> Tensor:
        table = self.embedding
        outside = tokens_BT >= table.num_embeddings
        embedded: Tensor = table(tokens_BT.masked_fill(outside | (tokens_BT < 0), 0))
        return embedded

    def forward(self, inputs: LMInputs, *, cache: Cache | None = None) -> Tensor:
        if cache is None:
            plan = plan_documents(
                inputs.segments_BT,
                cu_seqlens=inputs.cu_seqlens,
                branches_BT=inputs.branches_BT,
            )
        else:
            plan = plan_cached(cache.segments_BS, inputs.segments_BT)
            cache.segments_BS = (
                inputs.segments_BT
                if cache.segments_BS is None
                else torch.cat([cache.segments_BS, inputs.segments_BT], dim=1)
            )
        extra: dict[str, Any] = {} if inputs.memory is None else {"memory": inputs.memory}
        if inputs.visual_BT is not None:
            extra["routes"] = Routes.of(inputs.visual_BT)
        out = self.base(
            inputs_embeds=inputs.embeds_BTD,
            position_ids=inputs.positions_BT,
            past_key_values=None if cache is None else cache.lm,
            use_cache=cache is not None,
            plan=plan,
            **extra,
        )
        h_BTD: Tensor = out.last_hidden_state
        return h_BTD

    def logits(self, h_SD: Tensor) -> Tensor:
        scores: Tensor = self.head(h_SD)
        scale, cap = self.scale, getattr(self.config, "final_logit_softcapping", None)
        if scale != 1.0:
            scores = scores * scale
        return scores if cap is None else torch.tanh(scores / cap) * cap

    @property
    def scale(self) -> float:
        """Cohere multiplies its logits, Granite divides them; everyone else does neither."""
        times = getattr(self.config, "logit_scale", None) or 1.0
        over = getattr(self.config, "logits_scaling", None) or 1.0
        return float(times) / float(over)

    def losses(
        self, h_SD: Tensor, targets_S: Tensor, weights_S: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(
            h_SD * self.scale if self.scale != 1.0 else h_SD,
            self.head.weight,
            targets_S,
            bias=self.head.bias,
            weights_S=weights_S,
            softcap=getattr(self.config, "final_logit_softcapping", None),
        )

    def new_cache(self) -> Cache:
        return Cache(lm=DynamicCache(config=self.config))
