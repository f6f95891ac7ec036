"""The path: pixels and ids in, loss or logits out. Families differ behind the seams, never here.

Legend: B rows, T tokens, D language-model width, N views.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from retinue.model.connectors.base import EncoderFeatures, build, reduce_items
from retinue.model.encoders import ENCODERS
from retinue.model.fusions import FUSIONS
from retinue.model.head import Head, Keep
from retinue.model.hf_generate import Generation
from retinue.model.hf_inputs import MEDIA, batch_from_hf
from retinue.model.layouts import LAYOUTS
from retinue.model.lm import LMS
from retinue.model.lm.base import LanguageModel
from retinue.model.quant.swap import refuse_quantized
from retinue.model.spec import Plan, RetinueConfig
from retinue.types import Batch, Cache, Output, Visual, VisualTokens


class Retinue(Generation, PreTrainedModel, GenerationMixin):
    """A language model and the encoders in its service.

    Children: `lm` (original key names below it), `encoders`, `connector`, `layout`, `fusion`.
    """

    config_class = RetinueConfig
    config: RetinueConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: RetinueConfig) -> None:
        super().__init__(config)
        self.plan = Plan(config)
        spec, width = self.plan.spec, self.plan.lm_width
        self.lm: LanguageModel = LMS.get("causal")(config.text_config, rope=spec.rope)
        self.encoders = nn.ModuleDict(
            {
                name: ENCODERS.get(encoder.kind)(encoder, config.encoders[name])
                for name, encoder in spec.encoders.items()
            }
        )
        self.connector = build(spec.connector, self.plan.shapes, width)
        media_width = spec.connector.width(self.plan.shapes, width)
        self.layout = LAYOUTS.get(spec.layout.kind)(spec.layout, media_width)
        self.fusion = FUSIONS.get(spec.fusion.kind)(spec.fusion, width)
        self.fusion.attach(self.lm, media_width=media_width, image_id=spec.image_token_id)
        self.head = Head()
        self._tied_weights_keys = {f"lm.{a}": f"lm.{b}" for a, b in self.lm.tied.items()}
        self.post_init()

    # ------------------------------------------------------------------ the path

    def run(self, batch: Batch, *, cache: Cache | None = None, keep: Keep = "all") -> Output:
        """Loss of a labelled batch, else logits: of all positions, or of each row's last token.

        With a cache the batch holds only new tokens and the cache is extended in place.
        """
        x_BTD = self.lm.embed(batch.tokens)
        words = self.look(batch.visual)
        inputs = self.fusion(x_BTD, words, batch, cache=cache)
        h_BTD = self.lm(inputs, cache=cache)
        output: Output = self.head(self.lm, h_BTD, batch, keep=keep)
        return output

    def look(self, visual: Visual | None) -> VisualTokens | None:
        """Visual tokens of a batch's pictures; None where it has none."""
        if visual is None:
            return None
        budgets = [self.plan.spec.budget if b is None else b for b in visual.budgets]
        features = visual.features
        if features is None:
            features = self.connector.encode(self.encode(visual))
        views = reduce_items(self.connector, features, visual=visual, budgets=budgets)
        words: VisualTokens = self.layout(views, visual.grids)
        return words

    def encode(self, visual: Visual) -> EncoderFeatures:
        """Features of every layer that the connector takes, one pass per encoder over all views."""
        features = {}
        for name, encoder in self.encoders.items():
            layers = tuple(sorted(i for who, i in self.plan.spec.connector.takes() if who == name))
            if not layers:
                continue
            shape = self.plan.shapes[name]
            first = next(encoder.parameters())
            pixels_NCHW = encoder.pixels(visual.pixels[shape.stream], dtype=first.dtype)  # type: ignore[operator]
            trained = any(parameter.requires_grad for parameter in encoder.parameters())
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                found = encoder(pixels_NCHW, layers=layers)
            for layer, feature in found.items():
                features[name, layer] = feature.cast(self.connector_dtype)
        return features

    @property
    def connector_dtype(self) -> torch.dtype:
        """What features are cast to: the connector's dtype, or the LM's if it has no weights."""
        first = next(self.connector.parameters(), None)
        return (next(self.lm.parameters()) if first is None else first).dtype

    def new_cache(self) -> Cache:
        """An empty cache for `run`."""
        return self.lm.new_cache()

    # ------------------------------------------------------------------ transformers' view

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grids: Tensor | None = None,
        image_budgets: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """The keywords of transformers' image-text models; returns mean loss and logits.

        pixel_values: (N, 3, H, W) or (I, V, 3, H, W), uint8 levels or normalised; image_grids:
        (I, 5) rows, columns, overview, height, width of each picture (absent: one view each);
        image_budgets: (I,) visual tokens per view of each picture, 0 = the model's default;
        labels: (B, T) unshifted, -100 = none; num_items_in_batch: what the sum of losses is divided
        by, default the number of targets (Trainer gives that of all accumulated batches).
        """
        batch, cache = batch_from_hf(
            self.plan,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past=past_key_values,
            pixel_values=pixel_values,
            image_grids=image_grids,
            image_budgets=image_budgets,
        )
        if cache is None and use_cache and labels is None:
            cache = self.new_cache()
            setattr(cache.lm, MEDIA, cache.cross)
        x_BTD = self.lm.embed(batch.tokens) if inputs_embeds is None else inputs_embeds
        inputs = self.fusion(x_BTD, self.look(batch.visual), batch, cache=cache)
        h_BTD = self.lm(inputs, cache=cache)
        if isinstance(logits_to_keep, int):
            kept_BTD = h_BTD[:, -logits_to_keep:] if logits_to_keep else h_BTD
        else:
            kept_BTD = h_BTD[:, logits_to_keep]
        logits = self.lm.logits(kept_BTD)
        loss = None
        if labels is not None:
            flat, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
            if num_items_in_batch is None:
                loss = nn.functional.cross_entropy(flat, targets)
            else:
                loss = nn.functional.cross_entropy(flat, targets, reduction="sum")
                loss = loss / num_items_in_batch
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=None if cache is None else cache.lm
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.embedding  # type: ignore[return-value]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.lm.set_submodule(self.lm.embed_name, value)  # type: ignore[arg-type]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm.head  # type: ignore[return-value]

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm.set_submodule(self.lm.head_name, value)  # type: ignore[arg-type]

    def save_pretrained(
        self, *args: Any, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """As transformers', under the names of `state_dict`: one folder, one set of keys.

        transformers would otherwise write some backbones under the names of their first releases.
        Raises ConfigError for a quantized model.
        """
        refuse_quantized(self)
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Our own leaves initialise themselves; all else follows transformers' common rule.

        Called where transformers guards the functions of torch.nn.init, so that parameters read
        from files stay as they are, also where others of the same module were missing.
        """
        owns = next(module.parameters(recurse=False), None) is not None
        if owns and type(module).__module__.startswith("retinue."):
            module.reset_parameters()  # type: ignore[operator]
        else:
            super()._init_weights(module)
