"""What came of a run: the record that the server signs, and that sites check an adapter by."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from wardround.core.checked import Frozen
from wardround.runtime.signed import Hex32

KIND: Final = "result"
LARGEST: Final = 2**22
"""Bytes of a signed record, at the most."""
SHARED: Final = "shared.safetensors"
"""File beside the record, of a run whose sites have their own adapters: what federates, at its end."""
SHARED_IS: Final = (
    "what the sites share of their adapters: no adapter by itself, and none is released for everybody; each "
    "site's own lies at the site"
)
"""In words, for whoever finds the file."""


class PrivacyResult(Frozen):
    """What a private run promised, and what its sites said that it cost.

    Attributes:
        unit: Whom one neighbour lacks: a patient, an example or a site.
        noise: Where it was drawn: local, distributed or central.
        mechanism: Of local noise: each step's own, or banded, correlated over the whole run.
        delta: δ of every ε here.
        sites: Site → ε that this run has reserved of its units by Rényi DP, as the site last told it (of
            `unit=site` as the plan has it). Its own ledger is what counts: a draw that was lost with a
            process after that stands there alone.
    """

    unit: Literal["patient", "example", "site"]
    noise: Literal["local", "distributed", "central"]
    delta: float = Field(gt=0, lt=1)
    sites: dict[str, float]
    mechanism: Literal["poisson", "banded"] = "poisson"

    @property
    def text(self) -> str:
        """One line for people."""
        most = f"at most ε = {max(self.sites.values()):.4g}" if self.sites else "no ε was told"
        whom = self.unit if self.unit == "site" else f"{self.unit} and site"
        noise = f"{self.noise} noise" + (", banded over the whole run" if self.mechanism == "banded" else "")
        return f"differential privacy: {most} at δ = {self.delta:g} per {whom} ({noise})"


class ResultRecord(Frozen):
    """The end of one run.

    Where the strategy leaves each site an adapter of its own, nothing is released: `released` and
    `released_round` are None, and `last` is what federates, which is no adapter for anybody.

    Attributes:
        run_id: Of the run.
        plan: Digest of the signed plan.
        roster: Digest of the members' keys that it went by.
        sites: That took part, sorted.
        missing: Round, and the sites that were asked in it and are not in its sum; others are not told.
        reason: `completed` or `early_stop`.
        metric: By which the released round was chosen.
        scores: Round and value, as far as it was scored.
        released_round: Whose adapter is released, if any is.
        released: Digest of that adapter.
        last_round: The last one.
        last: Digest of its global adapter.
        privacy: Of a private run; None: nothing protects the rows but what the sums hide.
    """

    run_id: str = Field(min_length=1, max_length=200)
    plan: Hex32
    roster: Hex32
    sites: tuple[str, ...]
    missing: tuple[tuple[int, tuple[str, ...]], ...] = ()
    reason: str
    metric: str
    scores: tuple[tuple[int, float], ...]
    released_round: int | None = Field(ge=0)
    released: Hex32 | None
    last_round: int = Field(ge=0)
    last: Hex32
    privacy: PrivacyResult | None = None

    @model_validator(mode="after")
    def _released_whole(self) -> Self:
        if (self.released is None) != (self.released_round is None):
            raise ValueError("released and released_round go together")
        return self

    def went_in(self, site: str, round: int) -> bool:
        """Whether what a site trained in a round is in that round's sum, if it was asked there at all."""
        return not any(site in sites for number, sites in self.missing if number == round)
