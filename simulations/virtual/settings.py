"""Settings of a simulation's realism (`simulation.realism`); any of them starts the virtual clock."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, model_validator

from wardround.core.checked import Frozen
from wardround.simulations.virtual.figures import Figure, smallest


class Trace(Frozen):
    """When which site is there, as a file says."""

    kind: Literal["trace"]
    path: str
    """CSV with a first line `site,from,to`, or JSON lines with these keys; a site may have several lines."""
    unit: Literal["s", "h", "round"] = "s"
    """Of `from` and `to`: virtual seconds or hours, `to` excluded, or rounds, `to` included."""
    repeat: float | None = Field(default=None, gt=0)
    """After so long the trace begins again, in the same unit; None: after its end nobody is there."""
    least: int | None = Field(default=None, ge=1)
    """As of `Diurnal`."""


class Diurnal(Frozen):
    """Each site is there for the same part of every period, from a moment on that is drawn for it."""

    kind: Literal["diurnal"]
    period_s: float = Field(default=86_400.0, gt=0)
    share: float = Field(gt=0, le=1)
    """Of the period."""
    spread: float = Field(default=1.0, ge=0, le=1)
    """Sites come within this share of the period; 0: all at once, at its beginning."""
    least: int | None = Field(default=None, ge=1)
    """A round waits until so many sites are there; None: as many as the sites' policy asks of a cohort, where
    sums are hidden, otherwise one."""


Availability: TypeAlias = Annotated[Trace | Diurnal, Field(discriminator="kind")]


class Realism(Frozen):
    """How long what takes at which site, and when sites are there. Everything is off by default."""

    down_mbit_s: Figure | None = None
    """Bandwidth to the site, in Mbit/s; None: no limit."""
    up_mbit_s: Figure | None = None
    """Bandwidth from it."""
    latency_s: Figure = 0.0
    """Of one message, one way."""
    compute_s: Figure = 0.0
    """Seconds that training takes for a step, a row or a token (`compute_per`) of a site."""
    compute_per: Literal["step", "row", "token"] = "step"
    scoring: float = Field(default=0.33, ge=0)
    """What scoring a row costs of what training on it does: a forward pass of three."""
    slowness: Figure = 1.0
    """So many times longer than that a site takes."""
    availability: Availability | None = None
    grace_s: float | None = Field(default=None, gt=0)
    """So long an exchange waits for the others once enough have answered; None: until `rounds.deadline_s`."""

    @model_validator(mode="after")
    def _above_zero(self) -> Realism:
        for name, figure in (
            ("down_mbit_s", self.down_mbit_s), ("up_mbit_s", self.up_mbit_s), ("slowness", self.slowness),
        ):  # fmt: skip
            if figure is not None and not smallest(figure) > 0:
                raise ValueError(f"{name} may be zero: it has to be larger")
        return self

    @property
    def on(self) -> bool:
        """Whether anything of it was set: rounds take virtual time then."""
        return self != PLAIN


PLAIN: Final = Realism()
"""Nothing takes time, and every site is there."""
