"""What a site demands before it takes part, and again before it helps to open a sum."""

from __future__ import annotations

import math
from collections.abc import Collection

from pydantic import Field

from wardround.core.errors import PolicyError
from wardround.core.plan import Frozen


def default_threshold(members: int) -> int:
    """⌊2n/3⌋ + 1: fewer than a third may collude with a malicious relay, as many may be lost."""
    return 2 * members // 3 + 1


class SecurePolicy(Frozen):
    """A site's own rules; the strictest of all sites of a cohort decide whether a round takes place.

    With threshold t of n sites, a malicious relay needs more than 2t − n − 1 colluding ones to get two
    sets of survivors confirmed (each takes t confirmations, and an honest site gives one).
    """

    assumed_colluders: int = Field(default=1, ge=0)
    """m: so many members may work with the relay."""
    least_honest: int = Field(default=3, ge=2)
    """h: the sum has to hide a site among at least so many honest ones."""
    least_cohort: int = Field(default=5, ge=3)
    least_survivor_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the cohort that a sum has to hold: two sums that differ by one site differ by its update."""

    most_attempts: int = Field(default=10, ge=1)
    """Of one sum. Each draws a new graph in large cohorts, and a relay could try until it likes one."""
    least_degree: int = Field(default=100, ge=2)
    """Of the regular graph of a large cohort."""
    least_share_threshold: float = Field(default=0.6, gt=0.5, le=1)
    """Share of a site's neighbours (itself included) that has to agree to give its secrets back."""

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

    def check_graph(self, degree: int, share_threshold: int) -> None:
        """Refuse a graph in which too few, or too weakly bound, neighbours hide a site.

        Raises:
            PolicyError: Names the rule.
        """
        least = math.ceil(self.least_share_threshold * (degree + 1))
        if degree < self.least_degree or share_threshold < least:
            raise PolicyError(
                "the graph of the cohort is weaker than this site's policy allows",
                found=f"degree {degree}, {share_threshold} shares",
                expected=f"at least {self.least_degree}, {least} shares",
            )  # fmt: skip

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
                remedy="wait for more members, or change least_cohort, least_honest, assumed_colluders",
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
