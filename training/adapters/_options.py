"""Options that methods on factors of matrices share: where they sit, how they scale, what rides along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer

from wardround.training.adapters._normalised_head import LEAST_TEXTS, MOST_TEXTS


class FactorOptions(BaseModel):
    """Abstract: a method's own options add to it.

    Attributes:
        r: Rank, at least 1.
        alpha: Numerator of the scaling.
        targets: Module names (or name endings), `all-linear` for every linear layer but the head, or `none`
            for the head alone (and `modules_to_save`).
        rslora: Scale by alpha / √r.
        dropout: On the adapter's input, while training.
        bias: Which biases of the base train as well; they federate.
        modules_to_save: Further modules that train in full and federate. Heads that the checkpoint
            lacks are always among them.
        public_texts: What the head reads is normalised by constants of these texts, which everybody may
            know; see `_normalised_head.py`. None leaves it as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    added: ClassVar[frozenset[str]] = frozenset({"public_texts"})
    """Options that came later. A plan that does not use them does not name them, and keeps its digest."""

    r: int = 8
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[str, ...] | Literal["all-linear", "none"] = "all-linear"
    rslora: bool = False
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] = ()
    public_texts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), max_length=MOST_TEXTS)

    @field_validator("r")
    @classmethod
    def _positive(cls, rank: int) -> int:
        if rank < 1:
            raise ValueError("the rank has to be at least 1: with rank 0 nothing would train")
        return rank

    @field_validator("targets")
    @classmethod
    def _some(cls, targets: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not targets:
            raise ValueError("name at least one module, or all-linear")
        return targets

    @field_validator("public_texts")
    @classmethod
    def _enough(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if 0 < len(texts) < LEAST_TEXTS:
            raise ValueError(
                f"a mean of {len(texts)} texts says little: give at least {LEAST_TEXTS}, or none"
            )
        return texts

    @model_serializer(mode="wrap")
    def _as_before(self, write: Callable[[BaseModel], dict[str, Any]]) -> dict[str, Any]:
        """Without what came later and is not used, as before there was any of it."""
        return {name: value for name, value in write(self).items() if name not in self.added or value}
