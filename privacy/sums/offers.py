"""What plan and cohort say of a sum. The server proposes it; a site derives it again and refuses another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wardround.core.counting import TRAINING_LAYOUT, metric_layout, most_count
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Layout
from wardround.core.plan import Encoding, SecureRules, TrainingPlan
from wardround.privacy.quantisation import Scale, scale_for
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.policy import SecurePolicy, default_threshold
from wardround.privacy.sums.contract import EVALUATION

NOTHING = Layout(tensors=())
_COUNTS = Scale(bits=64, integers_per_unit=1.0, largest=1.0, norm=math.inf, most_weight=1, sites=1)
"""Of sums without coordinates; any would do."""


def scale_of(encoding: Encoding, sites: int) -> Scale:
    """The finest scale at which the sum over so many sites cannot wrap.

    Raises:
        ConfigError: The ring is too narrow.
    """
    return scale_for(
        bits=encoding.bits, largest=encoding.largest, norm=encoding.norm or math.inf,
        most_weight=encoding.most_weight, sites=sites,
    )  # fmt: skip


def run_of(run_id: str, name: str) -> str:
    """The run that a sum's offers name: sums of two names never meet in one key."""
    return f"{run_id}/{name}"


def offer_of(
    plan: TrainingPlan,
    *,
    name: str,
    run_id: str,
    round: int,
    stage: int,
    attempt: int,
    cohort: Sequence[str],
    roster: bytes,
    broadcast: bytes,
    statistics: Layout,
) -> Offer:
    """The offer of one attempt.

    Args:
        plan: What is trained.
        name: `training` or `evaluation`.
        run_id: Of the run.
        round: Counts from 1.
        stage: Of the round.
        attempt: At this sum.
        cohort: Sites that are asked, sorted.
        roster: Digest of the roster.
        broadcast: Digest of what everybody is sent.
        statistics: Layout of the contributions; the evaluation has none.

    Raises:
        ConfigError: The ring is too narrow for so many sites.
    """
    planned = _planned(plan, name=name, run_id=run_id, members=len(cohort), statistics=statistics)
    return Offer(
        round=round, stage=stage, attempt=attempt, cohort=tuple(cohort), roster=roster, broadcast=broadcast,
        **planned,
    )  # fmt: skip


def _planned(
    plan: TrainingPlan, *, name: str, run_id: str, members: int, statistics: Layout
) -> dict[str, Any]:
    """Every field of an offer that follows from the plan and the number of those who are asked."""
    rules = plan.secure
    regular = members > rules.complete_to
    layout, counters, scale = statistics, TRAINING_LAYOUT, _COUNTS
    if name == EVALUATION:
        layout, counters = NOTHING, metric_layout(plan)
    else:
        scale = scale_of(plan.encoding, members)
    return {
        "run_id": run_of(run_id, name),
        "plan": bytes.fromhex(plan.digest),
        "layout": bytes.fromhex(layout.digest),
        "counters_layout": bytes.fromhex(counters.digest),
        "threshold": rules.threshold or default_threshold(members),
        "degree": rules.degree if regular else 0,
        "share_threshold": rules.share_threshold if regular else 0,
        "coordinates": layout.size,
        "counters": counters.size,
        "bits": scale.bits,
        "scale": scale.integers_per_unit,
        "largest": scale.largest,
        "most_weight": scale.most_weight,
        "most_count": most_count(members),
    }


def check_offer(offer: Offer, plan: TrainingPlan, *, name: str, run_id: str, statistics: Layout) -> None:
    """Refuse an offer that is not the one that follows from the plan.

    Args:
        offer: What was proposed.
        plan: What this site accepted.
        name: Of the sum.
        run_id: Of the run.
        statistics: Layout of the contributions in this stage.

    Raises:
        PeerError: Names the first thing that differs.
    """
    try:
        expected = _planned(plan, name=name, run_id=run_id, members=len(offer.cohort), statistics=statistics)
    except ConfigError as error:
        raise PeerError(error.what, found=error.found, expected=error.expected) from error
    for field, value in expected.items():
        if getattr(offer, field) != value:
            raise PeerError(
                "the offer is not what the plan says",
                found=f"another {field.replace('_', ' ')}",
                expected="what plan and cohort give",
                remedy="server and site run different versions, or somebody altered the offer",
            )


def check_sites(
    secure: SecureRules,
    encoding: Encoding,
    policy: SecurePolicy,
    *,
    sites: int,
    cohort: int,
    group_size: int = 0,
) -> None:
    """Refuse, before a model is loaded, a run whose sums no site would take part in.

    Args:
        secure: The plan's rules.
        encoding: The plan's ring.
        policy: What sites demand.
        sites: Of the whole run.
        cohort: Sites that train in a round.
        group_size: Of a strategy that sums over groups; 0: the whole cohort is summed.

    Raises:
        PolicyError: The sites' own rules refuse the mode, its aggregator or so small a cohort.
        ConfigError: The ring is too narrow for it.
    """
    largest, least = cohort, cohort
    if group_size:
        largest, least = math.ceil(sites / (sites // group_size or 1)), group_size
    scale_of(encoding, largest)
    policy.check_mode(secure.mode, secure.aggregator)
    if secure.mode in {"off", "trusted"}:  # a contribution hides among nobody
        return
    for members in {sites, least}:  # all sites score the last adapter, whoever scores the others
        policy.check_cohort(members, secure.threshold or default_threshold(members))
