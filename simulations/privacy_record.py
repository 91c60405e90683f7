"""What differential privacy a run had, and what it cost: from the plan and the run's own events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wardround.core.plan import TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.runtime.events import Event, PrivacyReported, PrivacySpent
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.markdown import markdown_table

BANDED = (
    "one mechanism for the whole run, drawn at the site (banded matrix factorisation): a patient is in every "
    "b-th step, and the noise of a step takes a part of that of the b − 1 before it back"
)
NOISE = {
    "local": "every step's noise is drawn at the site (DP-SGD)",
    "distributed": "every site draws a share of the noise of the sum",
    "central": "the server draws the noise, and is trusted to",
}

TUNING = "Excluding tuning: choices made by looking at earlier runs are not counted."


def privacy_record(plan: TrainingPlan, events: Iterable[Event]) -> dict[str, Any]:
    """What stands under `privacy` in `summary.json`.

    `epsilon` is what was spent and `reserved` what was reserved at the federation's site that spent, or
    reserved, most; `sites` has both of each, with its units, q (`sample_rate`), σ and steps. `arms` has what
    every arm reserved, by site. Where the server moved the clip norm, `clip_norm` has that of the
    first round, and what the last one left.
    """
    record: dict[str, Any] = {"differential_privacy": "none", "secure_aggregation": plan.secure.mode}
    rules = plan.privacy
    if rules is None:
        return record
    arms: dict[str, dict[str, float]] = {}
    sites: dict[str, dict[str, float]] = {}
    rounds = last = 0
    norms: dict[str, dict[str, float]] = {}
    for event in events:
        if isinstance(event, PrivacyReported) and event.arm == FEDERATED:
            sites = {site: dict(figures) for site, figures in event.sites.items()}
            rounds, last = event.rounds, event.round
        elif isinstance(event, PrivacySpent):
            spent = arms.setdefault(event.arm, {})
            spent |= {site: max(spent.get(site, 0.0), epsilon) for site, epsilon in event.sites.items()}
            if event.clip_norm is not None:
                norms["clip_norm"] = {"first": rules.clip_norm, "last": event.clip_norm}
    epsilon, reserved = (
        max((figures[which] for figures in sites.values()), default=0.0) for which in ("spent", "reserved")
    )
    known = {
        "differential_privacy": claim(rules, epsilon),
        "accounting": accounting(epsilon, reserved),
        "mechanism": rules.mechanism,
        "rules": rules.model_dump(mode="json"),
        "epsilon": epsilon,
        "reserved": reserved,
        "delta": rules.delta,
        "unit": rules.unit,
        "accountant": "losses" if epsilon < reserved else "renyi",
        "rounds": rounds,
        "stopped_early": rounds > last,
        "seeded": True,
        "excluded": plan.data.validation_fraction if rules.trains_privately else 0.0,
        "sites": sites,
        "arms": arms,
    }
    return record | known | norms


def claim(rules: PrivacyRules, epsilon: float) -> str:
    """ε with all that it means nothing without."""
    return f"ε = {epsilon:.4g} at δ = {rules.delta:g} per {rules.unit} and site, excluding tuning"


def accounting(epsilon: float, reserved: float) -> str:
    """Who says so: what was spent is the smaller of two bounds, which are at one δ and of one unit."""
    if epsilon < reserved:
        return f"by privacy loss distributions; ε = {reserved:.4g} was reserved, by Rényi DP"
    return "as reserved, by Rényi DP: privacy losses give no smaller figure"


def privacy_text(record: Mapping[str, Any]) -> str:
    """The record in a few sentences, for the model card."""
    if record["differential_privacy"] == "none":
        return "No differential privacy: what the adapter gives away of a single patient is not bounded."
    rules, unit = record["rules"], record["unit"]
    banded = record.get("mechanism") == "banded"
    figures = sorted(figures["spent"] for figures in record["sites"].values())
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
            f"Differential privacy: **{record['differential_privacy']}** ({record['accounting']}; at "
            f"the site that spent most{sites}), under adding or removing one {unit}: "
            f"{BANDED if banded else NOISE[rules['noise']]}; {clipping}."
        ),
        (
            "**Not private as it was run: batches and noise came from the simulation's seed**, so that it "
            "can be repeated; the figures are those of the same run with a site's own randomness."
        ),
        f"The number of a site's {unit}s is taken as public."
        if unit != "site"
        else "All sites are known to take part.",
    ]
    if record["stopped_early"]:
        sentences.append(
            f"It stopped early; the figures are those of all {record['rounds']} planned rounds, since where "
            "to stop was chosen by looking at the scores."
        )
    if record["excluded"]:
        sentences.append(
            f"The claim excludes the {unit}s that sites held back for validation ({record['excluded']:.0%}): "
            "their scores chose the released round."
        )
    if unit == "example":
        sentences.append("A patient with several rows is protected less.")
    if unit == "patient":
        sentences.append("A patient known at several sites composes.")
    sentences.append(TUNING)
    return " ".join(sentences)


def privacy_table(record: Mapping[str, Any]) -> str:
    """What stands behind each site's ε, for the model card, after an empty line; empty without privacy."""
    sites: Mapping[str, Mapping[str, float]] = record.get("sites", {})
    if not sites:
        return ""
    named = sites.items()
    if record["unit"] == "site":  # one figure for all of them
        named = {f"each of {len(sites)}": next(iter(sites.values()))}.items()
    head = ("site", f"{record['unit']}s", "q", "σ", "steps", "ε spent", "ε reserved")
    rows = [
        (
            site, f"{of['units']:,.0f}", f"{of['sample_rate']:.4g}", f"{of['sigma']:.4g}",
            f"{of['steps']:,.0f}", f"{of['spent']:.4g}", f"{of['reserved']:.4g}",
        )
        for site, of in named
    ]  # fmt: skip
    return f"\n\n{markdown_table(head, rows)}\n\n{_legend(record)}; every ε at δ = {record['delta']:g}."


def _legend(record: Mapping[str, Any]) -> str:
    unit = record["unit"]
    if record.get("mechanism") == "banded":
        return (
            f"q: share of the {unit}s that a step takes, 1/b; σ: standard deviation of what is fresh in a "
            "step's noise over the clip norm; steps: of all planned rounds, which are one mechanism"
        )
    return (
        f"q: probability with which a step takes a {unit}; σ: standard deviation of the noise over what one "
        f"{unit} can change"
    )
