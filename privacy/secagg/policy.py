"""What a site demands before it takes part, and again before it helps to open a sum."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, TypeAlias

from pydantic import Field, field_validator

from wardround.core.checked import Frozen
from wardround.core.errors import PolicyError
from wardround.core.plan import HexKey
from wardround.privacy.secagg.odds import exposure

Mode: TypeAlias = Literal["real", "accounted", "off", "trusted"]


def default_threshold(members: int) -> int:
    """⌊2n/3⌋ + 1: fewer than a third may collude with a malicious relay, as many may be lost."""
    return 2 * members // 3 + 1


def check_change(before: Collection[str], survivors: Collection[str], least: int) -> None:
    """Refuse to open a sum that differs from the last one by a few sites: the difference shows theirs.

    Args:
        before: Survivors of the last sum that was opened; empty where there is none.
        survivors: Of this one.
        least: Sites by which the two may differ, if they do.

    Raises:
        PolicyError: They differ by fewer.
    """
    changed = len(set(before) ^ set(survivors)) if before else 0
    if 0 < changed < least:
        raise PolicyError(
            "the difference to the last sum of this kind would be that of too few sites",
            found=f"{changed} sites", expected=f"none, or at least {least}",
            remedy="counts that leave rounded need no such rule: plans.smallest_cell above 1 in site.yaml",
        )  # fmt: skip


class SecurePolicy(Frozen):
    """A site's own rules; the strictest of all sites of a cohort decide whether a round takes place.

    With threshold t of n sites, a malicious relay needs more than 2t − n − 1 colluding ones to get two
    sets of survivors confirmed (each takes t confirmations, and an honest site gives one).
    """

    modes: tuple[Mode, ...] = ("real",)
    """What may stand in a plan's `secure.mode`; `off` shows the server each contribution by itself."""
    aggregator: HexKey | None = None
    """X25519 key that this site's people pinned: `trusted` seals to it, and to no other."""
    assumed_colluders: int = Field(default=1, ge=0)
    """m: so many members may work with the relay."""
    least_honest: int = Field(default=3, ge=2)
    """h: the sum has to hide a site among at least so many honest ones."""
    least_cohort: int = Field(default=5, ge=3)
    least_survivor_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the cohort that a sum has to hold: two sums that differ by one site differ by its update."""

    most_attempts: int = Field(default=10, ge=1)
    """Of one sum. Each draws a new graph in large cohorts, and a relay could try until it likes one."""
    colluding_share: float = Field(default=1 / 3, ge=0, lt=1)
    """Of a large cohort, whose sites mask with a part of the others only: so many may work with the relay."""
    most_exposure: float = Field(default=1e-5, ge=0, le=1)
    """Probability, over all sites, that the draw of that graph exposes one to them."""
    group_strategies: tuple[str, ...] = ()
    """Strategies that may have sums over groups: they show a sum of fewer sites than the whole cohort."""

    @field_validator("modes", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return ["off" if mode is False else mode for mode in value]  # YAML's unquoted off

    def check_mode(self, mode: Mode, aggregator: str | None = None) -> None:
        """Refuse a plan that protects less than this site demands.

        Args:
            mode: The plan's `secure.mode`.
            aggregator: Its `secure.aggregator`.

        Raises:
            PolicyError: The mode is not among the policy's, or as `trusted_key`.
        """
        if mode not in self.modes:
            raise PolicyError(
                "this site's policy does not allow the plan's aggregation", found=f"secure.mode={mode}",
                expected="one of " + ", ".join(self.modes),
                remedy="change secure.mode in the plan, or modes in the site's own policy",
            )  # fmt: skip
        if mode == "trusted":
            self.trusted_key(aggregator)

    def trusted_key(self, aggregator: str | None) -> bytes:
        """The key that this site seals to, 32 bytes: the one that it pinned, if the plan names the same.

        Raises:
            PolicyError: None is pinned, or the plan names another.
        """
        if self.aggregator is None or aggregator != self.aggregator:
            raise PolicyError(
                "this site's policy does not trust the plan's aggregator",
                found=f"secure.aggregator={aggregator}",
                expected=self.aggregator or "a key that this site pinned, and it has pinned none",
                remedy="compare the key with the aggregator's own people, then pin it: aggregator in the "
                "site's own policy",
            )
        return bytes.fromhex(self.aggregator)

    def check_groups(self, strategy: str) -> None:
        """Refuse sums over groups of the cohort, unless this site allows them to this strategy.

        Raises:
            PolicyError: The strategy is not among the policy's.
        """
        if strategy not in self.group_strategies:
            raise PolicyError(
                "this site's policy does not allow the plan's strategy sums over groups",
                found=f"strategy {strategy}", expected=f"one of {list(self.group_strategies)}",
                remedy="add its name to group_strategies in the site's policy, or take another strategy",
            )  # fmt: skip

    def check_attempt(self, attempt: int) -> None:
        """Refuse endless attempts.

        Raises:
            PolicyError: The number is above the policy's.
        """
        if attempt >= self.most_attempts:
            raise PolicyError(
                "the sum was tried more often than this site's policy allows", found=f"attempt {attempt}",
                expected=f"below {self.most_attempts}", remedy="go on with the next round",
            )  # fmt: skip

    def check_graph(self, members: int, degree: int, share_threshold: int) -> None:
        """Refuse a graph in which too few, or too weakly bound, neighbours hide a site.

        Raises:
            PolicyError: Its exposure is above the policy's.
        """
        colluding = max(self.assumed_colluders, math.floor(self.colluding_share * members))
        risk = exposure(members, degree, share_threshold, colluding)
        if risk > self.most_exposure:
            raise PolicyError(
                "the graph of the cohort is weaker than this site's policy allows",
                found=f"degree {degree}, {share_threshold} shares: exposure {risk:.2g} to {colluding}",
                expected=f"at most {self.most_exposure:.2g}",
                remedy="a higher degree or share threshold in the plan",
            )

    def check_cohort(self, members: int, threshold: int) -> None:
        """Refuse a cohort that does not protect.

        Raises:
            PolicyError: Names the rule.
        """
        least = max(self.least_cohort, self.least_honest + self.assumed_colluders)
        if members < least:
            raise PolicyError(
                "the cohort is smaller than this site's policy allows",
                found=f"{members} sites", expected=f"at least {least}",
                remedy="wait for more members, change least_cohort, least_honest or assumed_colluders, "
                "or in a simulation set secure.mode=off",
            )  # fmt: skip
        if not default_threshold(members) <= threshold <= members:
            raise PolicyError(
                "the threshold is not one that this site accepts", found=f"{threshold} of {members}",
                expected=f"{default_threshold(members)} to {members}",
            )  # fmt: skip
        if self.assumed_colluders > 2 * threshold - members - 1:
            raise PolicyError(
                "the threshold does not hold against the colluders that this site assumes",
                found=f"{2 * threshold - members - 1} at threshold {threshold} of {members}",
                expected=f"at least {self.assumed_colluders}",
                remedy="raise the threshold in the plan",
            )  # fmt: skip

    def check_survivors(self, survivors: Collection[str], members: int, threshold: int) -> None:
        """Refuse to open a sum over too few.

        Raises:
            PolicyError: Names the rule.
        """
        share = math.ceil(self.least_survivor_share * members)
        least = max(threshold, self.least_honest + self.assumed_colluders, share)
        if len(survivors) < least:
            raise PolicyError(
                "the sum would be over fewer sites than this site's policy allows",
                found=f"{len(survivors)} of {members}", expected=f"at least {least}",
            )  # fmt: skip
