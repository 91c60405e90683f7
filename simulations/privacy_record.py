"""What differential privacy a run had, and what it cost: from the plan and the run's own events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wardround.core.plan import TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.runtime.events import Event, PrivacySpent

NOISE = {
    "local": "every step's noise is drawn at the site (DP-SGD)",
    "distributed": "every site draws a share of the noise of the sum",
    "central": "the server draws the noise, and is trusted to",
}


def privacy_record(plan: TrainingPlan, events: Iterable[Event]) -> dict[str, Any]:
    """What stands under `privacy` in `summary.json`.

    `epsilon` is the largest of the federation's sites; `arms` has each arm's by site. Where the server moved
    the clip norm, `clip_norm` has that of the first round, and what the last one left.
    """
    record: dict[str, Any] = {"differential_privacy": "none", "secure_aggregation": plan.secure.mode}
    rules = plan.privacy
    if rules is None:
        return record
    arms: dict[str, dict[str, float]] = {}
    norms: dict[str, dict[str, float]] = {}
    for event in events:
        if isinstance(event, PrivacySpent):
            spent = arms.setdefault(event.arm, {})
            spent |= {site: max(spent.get(site, 0.0), epsilon) for site, epsilon in event.sites.items()}
            if event.clip_norm is not None:
                norms["clip_norm"] = {"first": rules.clip_norm, "last": event.clip_norm}
    federated = arms.get("federated", {})
    epsilon = max(federated.values(), default=0.0)
    return (
        record
        | {
            "differential_privacy": claim(rules, epsilon),
            "rules": rules.model_dump(mode="json"),
            "epsilon": epsilon,
            "delta": rules.delta,
            "unit": rules.unit,
            "accountant": "renyi",
            "seeded": True,
            "excluded": plan.data.validation_fraction if rules.trains_privately else 0.0,
            "arms": arms,
        }
        | norms
    )


def claim(rules: PrivacyRules, epsilon: float) -> str:
    """ε with all that it means nothing without."""
    return f"ε = {epsilon:.4g} at δ = {rules.delta:g} per {rules.unit} and site"


def privacy_text(record: Mapping[str, Any]) -> str:
    """The record in a few sentences, for the model card."""
    if record["differential_privacy"] == "none":
        return "No differential privacy: what the adapter gives away of a single patient is not bounded."
    rules, unit = record["rules"], record["unit"]
    figures = sorted(record["arms"].get("federated", {}).values())
    sites = f"; {figures[0]:.3g} to {figures[-1]:.3g} over the sites" if figures[1:] else ""
    clipping = f"clip norm {rules['clip_norm']:g}, {rules['clipping']} clipping"
    if "clip_norm" in record:
        first, last = (record["clip_norm"][place] for place in ("first", "last"))
        clipping = (
            f"adaptive clipping of whole updates, the norm from {first:g} in the first round to {last:.4g} "
            "after the last, as noised counts moved it"
        )
    sentences = [
        (
            f"Differential privacy: **{record['differential_privacy']}** (Rényi accounting, the site that "
            f"spent most{sites}), under adding or removing one {unit}: {NOISE[rules['noise']]}; {clipping}."
        ),
        (
            "**Not private as it was run: batches and noise came from the simulation's seed**, so that it "
            "can be repeated; the figures are those of the same run with a site's own randomness."
        ),
        f"The number of a site's {unit}s is taken as public."
        if unit != "site"
        else "All sites are known to take part.",
    ]
    if record["excluded"]:
        sentences.append(
            f"The claim excludes the {unit}s that sites held back for validation ({record['excluded']:.0%}): "
            "their scores chose the released round."
        )
    if unit == "example":
        sentences.append("A patient with several rows is protected less.")
    if unit == "patient":
        sentences.append("A patient known at several sites composes.")
    sentences.append("Choices made by looking at earlier runs (tuning) are not accounted for.")
    return " ".join(sentences)
