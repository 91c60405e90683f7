"""A plan in a few lines, for the people who are to sign or approve it; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from wardround.core.compression import described
from wardround.core.counting import TRAINING_LAYOUT, metric_layout
from wardround.core.enrolment import DAY_S, SignedPlan
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.privacy.accounting.of_plan import round_cost
from wardround.privacy.secagg.policy import default_threshold
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.noise import epsilon_of_sums
from wardround.runtime.sizes import size_text
from wardround.strategies.contract import IndividualStrategy, PersonalStrategy
from wardround.training.plan_check import site_advice
from wardround.training.plan_strategy import bind_strategy, group_rules

FLOAT_BYTES = 4
COUNTER_BYTES = 8
OWN_RESULT = (
    "an adapter of its own at each site, a part of which never leaves it; none is released for everybody"
)


def summary_of(document: SignedPlan, sites: int, units: Iterable[int] = ()) -> dict[str, Any]:
    """What a person should know of a plan that is sound (`plan_check.py`), as values for JSON.

    Args:
        document: The plan and its enrolment rules.
        sites: So many are expected to take part.
        units: That sites train on, where somebody said so; the largest ε of them is told.

    Raises:
        ConfigError: The plan is not sound.
        PolicyError: δ is too large for so few units.
    """
    plan = document.plan
    strategy, groups = bind_strategy(plan), group_rules(plan.strategy)
    cohort = cohort_size(plan.rounds, sites)
    alone = isinstance(strategy, IndividualStrategy)
    summed = groups.group_size if groups else 1 if alone else cohort
    stages = range(strategy.stages)
    form, bits = Form.of(plan), plan.encoding.bits
    up = sum(form.size(strategy.statistics_layout(stage).size, bits) for stage in stages)
    counters = TRAINING_LAYOUT.size * strategy.stages + metric_layout(plan).size
    down = sum(strategy.broadcast_layout(stage).size for stage in stages)
    return {
        "name": plan.name,
        "plan_digest": plan.digest,
        "digest": document.digest,
        "base": plan.base.name,
        "base_digest": plan.base.digest,
        "dtype": plan.base.dtype,
        "task": plan.task.name,
        "labels": list(plan.data.labels),
        "labels_digest": plan.data.labels_digest if plan.data.labels else None,
        "template_digest": plan.data.template_digest,
        "adapter": plan.adapter.method,
        "coordinates": plan.adapter.layout.size,
        "initial_digest": plan.adapter.initial_digest,
        "rounds": plan.rounds.rounds,
        "strategy": plan.strategy.name,
        "own_adapters": isinstance(strategy, PersonalStrategy),
        "weighting": plan.strategy.weighting,
        "bits": bits,
        "compression": described(plan.encoding.compression) or None,
        "sites": sites,
        "cohort": cohort,
        "secure": plan.secure.mode,
        "summed_sites": summed,
        "threshold": _threshold(plan, summed),
        "aggregator": plan.secure.aggregator,
        "privacy": _privacy(plan, cohort, units),
        "bytes_up_a_round": up + COUNTER_BYTES * counters,
        "bytes_down_a_round": FLOAT_BYTES * down,
        "enrolment": document.enrolment.model_dump(mode="json"),
        "advice": list(site_advice(plan, sites)),
    }


def _threshold(plan: TrainingPlan, summed: int) -> int | None:
    if plan.secure.mode not in ("real", "accounted"):
        return None
    return plan.secure.threshold or default_threshold(summed)


def _privacy(plan: TrainingPlan, cohort: int, units: Iterable[int]) -> dict[str, Any] | None:
    rules = plan.privacy
    if rules is None:
        return None
    epsilon = rules.epsilon
    if rules.noise != "local":
        size = bind_strategy(plan).statistics_layout(0).size
        rounds = plan.rounds.rounds
        epsilon = epsilon_of_sums(plan, units=1, cohort=cohort, coordinates=size, rounds=rounds).value
    elif epsilon is None:
        costs = [round_cost(plan, count) for count in units]
        epsilon = max((cost.epsilon().value for cost in costs if cost is not None), default=None)
    return {
        "unit": rules.unit, "noise": rules.noise, "epsilon": epsilon, "sigma": rules.sigma,
        "delta": rules.delta, "mechanism": rules.mechanism,
    }  # fmt: skip


def summary_text(record: Mapping[str, Any]) -> str:
    """The summary in lines that a terminal shows."""
    enrolment = record["enrolment"]
    labels = f", {len(record['labels'])} labels, digest {record['labels_digest']}" if record["labels"] else ""
    template, sent = record["template_digest"], record["compression"]
    up, down = size_text(record["bytes_up_a_round"]), size_text(record["bytes_down_a_round"])
    lines = {
        "plan": f"{record['name']}, digest {record['digest']}",
        "base model": f"{record['base']} ({record['dtype']}), digest {record['base_digest']}",
        "task": record["task"] + labels,
        **({} if template is None else {"template": f"digest {template}"}),
        "adapter": f"{record['adapter']}, {record['coordinates']:,} coordinates",
        "rounds": f"{record['rounds']} of {record['strategy']}, weighted by {record['weighting']}",
        **({"result": OWN_RESULT} if record["own_adapters"] else {}),
        "sites": f"{record['sites']} expected, {record['cohort']} train in a round; round 1 waits for "
        f"{enrolment['least_sites']}, the offer stands {_days(enrolment['offer_expires_s'])}",
        "sums": f"{record['bits']} bits a coordinate; {_secure_text(record)}",
        **({} if sent is None else {"contributions": f"compressed: {sent}"}),
        "privacy": _privacy_text(record["privacy"]),
        "a site sends": f"{up} a round and gets {down}, beside the keys and shares of secure aggregation",
    }
    width = max(map(len, lines))
    told = [f"{name:<{width}}  {text}" for name, text in lines.items()]
    return "\n".join([*told, *(f"note: {text}" for text in record["advice"])])


def privacy_line(record: Mapping[str, Any]) -> str:
    """What a summary says of differential privacy: ε with its δ, or none."""
    return _privacy_text(record["privacy"])


def _days(seconds: float) -> str:
    return f"{seconds / DAY_S:g} days" if seconds >= DAY_S else f"{seconds:g} s"


def _secure_text(record: Mapping[str, Any]) -> str:
    mode, members, threshold = record["secure"], record["summed_sites"], record["threshold"]
    if mode == "trusted":
        return f"secure aggregation trusted, sealed to the key {record['aggregator']}"
    if threshold is None:
        return "secure aggregation off: the server sees each contribution"
    hidden = "" if mode == "real" else " (phases and bytes alone: nothing is hidden)"
    return (
        f"secure aggregation {mode}{hidden}: {threshold} of {members} confirm a sum, {members - threshold} "
        f"may be lost, {max(0, 2 * threshold - members - 1)} may work with the server"
    )


NOISE_OF: Final = {"poisson": "", "banded": ", correlated over the run's steps (banded matrix factorisation)"}


def _privacy_text(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "none"
    epsilon = "is not known before a site's units are" if record["epsilon"] is None else None
    told = epsilon or f"at most {record['epsilon']:.4g}"
    return (
        f"ε {told} a {record['unit']} at each site over the whole run, δ {record['delta']:g}, "
        f"{record['noise']} noise{NOISE_OF[record['mechanism']]}"
    )
