"""The inference twin of Llama-shaped language models: the same weights, a loop with less around it.

Legend: B rows, T new tokens, S cached and new tokens, D head width, W width, V vocabulary.

transformers' layers remain the reference and the fallback: whatever is not recognised exactly
(another layer class, sliding windows, adapters, hooks, a rope that remembers, an accelerator) is
decoded by the model itself.
"""

from __future__ import annotations

from functools import cache as memoize
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from retinue.model.fusions.splice import Splice
from retinue.model.head import Keep
from retinue.model.lm.causal import CausalLM
from retinue.model.lm.fused_cache import FusedCache
from retinue.model.lm.fused_layer import FusedLayer, Sight, norm_of, product
from retinue.model.quant.base import QuantLinear
from retinue.model.retinue import Retinue
from retinue.model.ropes.sequence import SequenceRope
from retinue.ops.plan import plan_cached, plan_documents
from retinue.types import Batch, Cache, LMInputs, Output

ROPES = ("default", "linear", "llama3", "yarn")
"""Rope types whose angles depend on the position alone."""
TABLE = 1024
"""Positions by which the table of angles grows."""


@overload
def inference_twin(model: Retinue, *, dtype: torch.dtype | None = None) -> Retinue | Twin: ...
@overload
def inference_twin(model: Any, *, dtype: torch.dtype | None = None) -> Any: ...
def inference_twin(model: Any, *, dtype: torch.dtype | None = None) -> Any:
    """Something that decodes like `model`, faster if its language model is Llama-shaped.

    The twin copies the language model's matrices as they are now: build it when training is over.
    dtype: what it computes in, None = the model's own. `model` itself comes back where it is not
    recognised (`unlike` says why), where the copy does not fit into memory, and where it is no
    Retinue.
    """
    if not isinstance(model, Retinue) or unlike(model) is not None:
        return model
    lm: Any = model.lm
    kind = dtype or lm.layers[0].self_attn.o_proj.weight.dtype
    if 2 * kind.itemsize * sum(p.numel() for p in lm.base.layers.parameters()) > free_bytes():
        return model
    return Twin(model, dtype=kind)


class Twin:
    """Runs batches as `Retinue.run` does, for decoding only. Built by `inference_twin`."""

    def __init__(self, model: Retinue, *, dtype: torch.dtype) -> None:
        lm: Any = model.lm
        self.model, self.dtype = model, dtype
        self.layers = [
            FusedLayer(layer, number=number, dtype=dtype) for number, layer in enumerate(lm.layers)
        ]
        self.norm = norm_of(lm.base.norm, dtype)
        self.head = product([lm.head], dtype)
        self.rotary = lm.base.rotary_emb
        self.turns = torch.zeros(0)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def new_cache(self) -> Cache:
        """An empty cache for `run`."""
        return Cache(lm=FusedCache(len(self.layers)))

    @torch.no_grad()
    def run(self, batch: Batch, *, cache: Cache | None = None, keep: Keep = "all") -> Output:
        """As `Retinue.run` without labels."""
        if batch.labels is not None:
            assert cache is None, "a loss needs no cache"
            return self.model.run(batch, keep=keep)
        model, held = self.model, (cache or self.new_cache()).lm
        x_BTW = model.lm.embed(batch.tokens)
        inputs = model.fusion(x_BTW, model.look(batch.visual), batch)
        h_BTW = self.hidden(inputs, held)
        if keep == "last" and h_BTW.shape[1] == 1:
            return Output(logits=self.logits(h_BTW[:, 0]))
        output: Output = model.head(self, h_BTW, batch, keep=keep)
        return output

    def hidden(self, inputs: LMInputs, held: FusedCache) -> Tensor:
        """(B, T, W) after the final norm."""
        B, T, W = inputs.embeds_BTD.shape
        sight = self.sight(inputs, held)
        # layers write into this buffer, which must not be the embedding table's
        x_NW = inputs.embeds_BTD.reshape(B * T, W).to(self.dtype, copy=True)
        for layer in self.layers:
            x_NW = layer(x_NW, sight, held)
        h_BTW: Tensor = self.norm(x_NW).view(B, T, W)
        return h_BTW

    def logits(self, h_SW: Tensor) -> Tensor:
        """(..., W) -> (..., V)."""
        return self.head(h_SW)

    def sight(self, inputs: LMInputs, held: FusedCache) -> Sight:
        """Angles and plan of a forward; the new tokens' segments join the cache."""
        segments_BT = inputs.segments_BT
        past_BS = held.seen() if held.length else None
        start, stop = held.extend(segments_BT)
        turns = self.angles(inputs.positions_BT)
        if start and segments_BT.shape[1] == 1:
            mask = None
            if held.uniform is None:
                hidden_BS = held.seen() != segments_BT
                mask = torch.zeros(hidden_BS.shape, dtype=self.dtype)
                mask = mask.masked_fill_(hidden_BS, -torch.inf)[:, None, None]
            return Sight(start=start, stop=stop, turns=turns, plan=None, mask=mask)
        if past_BS is None:
            plan = plan_documents(
                segments_BT, cu_seqlens=inputs.cu_seqlens, branches_BT=inputs.branches_BT
            )
        else:
            plan = plan_cached(past_BS, segments_BT)
        return Sight(start=start, stop=stop, turns=turns, plan=plan, mask=None)

    def angles(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions, (B, T, 1, D) each, sines minus in their first half."""
        if isinstance(self.rotary, SequenceRope):  # which no table can hold
            found = self.turned(positions_BT)
        else:
            need = int(positions_BT.max()) + 1
            if need > len(self.turns):
                self.turns = self.turned(torch.arange(-(-need // TABLE) * TABLE)[None])[0]
            found = self.turns[positions_BT]
        return found[:, :, :1], found[:, :, 1:]

    def turned(self, positions_BT: Tensor) -> Tensor:
        """(B, T, 2, D) cosines and signed sines."""
        cos, sin = self.rotary(torch.zeros(1, dtype=torch.float32), positions_BT)
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return torch.stack([cos, signed], 2).to(self.dtype)


# ---------------------------------------------------------------- what is recognised


@memoize
def known_layers() -> dict[type, type]:
    """Decoder layer classes with the arithmetic of `FusedLayer` -> class of their norms."""
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.mistral import modeling_mistral as mistral
    from transformers.models.phi3 import modeling_phi3 as phi3
    from transformers.models.qwen2 import modeling_qwen2 as qwen2
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    return {
        llama.LlamaDecoderLayer: llama.LlamaRMSNorm,
        mistral.MistralDecoderLayer: mistral.MistralRMSNorm,
        phi3.Phi3DecoderLayer: phi3.Phi3RMSNorm,
        qwen2.Qwen2DecoderLayer: qwen2.Qwen2RMSNorm,
        qwen3.Qwen3DecoderLayer: qwen3.Qwen3RMSNorm,
    }


def unlike(model: Retinue) -> str | None:
    """Why a model has no twin, None if it has one."""
    lm: Any = model.lm
    if type(lm) is not CausalLM or type(model.fusion) is not Splice:
        return f"{type(lm).__name__} with fusion {type(model.fusion).__name__}"
    if model.device.type != "cpu":
        return f"on {model.device}"
    config, layers = lm.config, list(lm.layers)
    norm = known_layers().get(type(layers[0]))
    if norm is None or any(type(layer) is not type(layers[0]) for layer in layers):
        return f"layers are {type(layers[0]).__name__}"
    if getattr(config, "hidden_act", None) != "silu":
        return f"activation {getattr(config, 'hidden_act', None)}"
    if lm.scale != 1.0 or getattr(config, "final_logit_softcapping", None) is not None:
        return "scaled or capped logits"
    if windowed(config, layers):
        return "sliding windows"
    return unlike_parts(lm, norm)


def windowed(config: Any, layers: list[Any]) -> bool:
    """Whether some layer's queries see their newest keys only."""
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return True
    attentions = [layer.self_attn for layer in layers]
    if all(hasattr(attention, "sliding_window") for attention in attentions):
        return any(attention.sliding_window is not None for attention in attentions)
    return getattr(config, "sliding_window", None) is not None


def unlike_parts(lm: Any, norm: type) -> str | None:
    """As `unlike`, of the modules below the layers: exact classes, no hooks, full rotation."""
    rotary = lm.base.rotary_emb
    scaled = type(rotary) is SequenceRope
    if not scaled and getattr(rotary, "rope_type", None) not in ROPES:
        return f"rope {getattr(rotary, 'rope_type', type(rotary).__name__)}"
    width = rotary.width if scaled else 2 * len(rotary.inv_freq)
    if width != lm.layers[0].self_attn.head_dim:
        return "only a part of each head turns"
    exact = (nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList, nn.SiLU, SequenceRope)
    norms = [layer.input_layernorm for layer in lm.layers]
    if any(type(found) is not norm for found in (*norms, lm.base.norm)):
        return "norms of another kind"
    for name, module in [*lm.base.named_modules(), ("head", lm.head)]:
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name} has hooks"
        if "forward" in vars(module):
            return f"{name} has a forward of its own"
        known = type(module) in exact or isinstance(module, QuantLinear)
        known = known or type(module).__module__.startswith("transformers.")
        if not known:
            return f"{name} is a {type(module).__name__}"
    return None


def free_bytes() -> float:
    """Memory that can be had without swapping; without bound where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return float("inf")
    found = [line.split()[1] for line in info.read_text().splitlines() if "MemAvailable" in line]
    return float(found[0]) * 1024 if found else float("inf")
