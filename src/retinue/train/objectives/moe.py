"""Next-token prediction of a mixture of experts, with a price on uneven routing."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from retinue.core.errors import ConfigError
from retinue.model.lm.router import imbalance, routers, watched
from retinue.train.objectives.base import Objective, ObjectiveSpec
from retinue.types import Batch, Output


class MoeSpec(ObjectiveSpec):
    """`balance`: weight of the routers' loss, None = the language model's router_aux_loss_coef.

    padding: whether padding counts in the routers' loss, as in LLaMA2-Accessory.
    """

    kind: Literal["moe"] = "moe"
    balance: float | None = Field(default=None, ge=0)
    padding: bool = False


class Moe(Objective):
    """Cross-entropy plus the mean imbalance of the layers' routers (Switch, arXiv 2101.03961).

    Metric: `load_balancing`, the imbalance before its weight; 1 is even.
    """

    Spec: ClassVar[type[ObjectiveSpec]] = MoeSpec
    spec: MoeSpec

    def __call__(self, model: Any, batch: Batch) -> Output:
        with watched(model.lm) as seen:
            output: Output = model.run(batch)
        real = None if self.spec.padding else (batch.segments > 0).flatten()
        uneven = imbalance(seen, real_N=real).mean()
        weight = self.spec.balance
        if weight is None:
            weight = float(getattr(model.lm.config, "router_aux_loss_coef", 0.0))
        assert output.loss_sum is not None
        assert output.num_supervised is not None
        # sums are divided by the supervised tokens, which the routers' mean must survive
        loss = output.loss_sum + weight * uneven * output.num_supervised
        return Output(
            loss_sum=loss,
            num_supervised=output.num_supervised,
            losses=output.losses,
            metrics={**output.metrics, "load_balancing": uneven.detach()},
        )

    def check(self, model: Any) -> None:
        """Raises ConfigError for a language model without experts."""
        if not routers(model.lm):
            raise ConfigError(
                "objective moe over a language model without experts",
                where="train.stages.objective",
                fix="use objective sft",
            )
