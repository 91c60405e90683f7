"""What summing the contributions cost, and what it did to them: from the run's own events."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from wardround.core.compression import described
from wardround.core.plan import TrainingPlan
from wardround.privacy.sums.contract import TRAINING, plain_name
from wardround.runtime.events import Event, RoundBurnt, RoundFolded, SiteReplied, SumOpened
from wardround.runtime.sizes import size_text
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.privacy_record import privacy_table, privacy_text


def secure_record(plan: TrainingPlan, events: Iterable[Event]) -> dict[str, Any]:
    """What stands under `secure` in `summary.json`.

    Bytes and seconds are means over sites and rounds; those of a site are its own, both sums together.
    """
    own = [event for event in events if event.arm == FEDERATED]
    sums = [event for event in own if isinstance(event, SumOpened)]
    folded = [event for event in own if isinstance(event, RoundFolded)]
    rounds = len({event.round for event in sums}) or 1
    places = max(1, sum(_most_by_round(sums).values()))
    replies = [event.local for event in own if isinstance(event, SiteReplied)]
    return {
        "mode": plan.secure.mode,
        "groups": len({event.name for event in sums if plain_name(event.name) == TRAINING}),
        "aggregator": key_digest(plan.secure.aggregator),
        "bits": plan.encoding.bits,
        "compression": described(plan.encoding.compression),
        "exchanges": max((event.exchanges for event in sums), default=0),
        "later_attempts": sum(event.attempt for event in sums),
        "burnt_rounds": sum(isinstance(event, RoundBurnt) for event in own),
        "bytes_up_a_site": round(sum(event.bytes_up for event in sums) / places),
        "bytes_down_a_site": round(sum(event.bytes_down for event in sums) / places),
        "seconds_a_site": round(sum(event.site_s for event in sums) / places, 6),
        "seconds_server": round(sum(event.server_s for event in sums) / rounds, 6),
        "rounding": max((event.rounding for event in folded), default=0.0),
        "discarded_energy": max(
            (event.discarded_energy for event in folded if event.discarded_energy is not None), default=None
        ),
        "clipped": int(sum(figures.get("clipped", 0) for figures in replies)),
        "shortened": sum(figures.get("shortened_by", 1.0) < 1.0 for figures in replies),
    }


def key_digest(key: str | None) -> str:
    """The first 16 digits of the SHA-256 of a public key in hex, for people to compare; empty without one."""
    return "" if key is None else hashlib.sha256(bytes.fromhex(key)).hexdigest()[:16]


def _most_by_round(sums: Iterable[SumOpened]) -> dict[int, int]:
    """Round → sites that took part: the larger of its sums' cohorts, all groups of one together."""
    taken = {(event.round, event.stage, event.name): event.cohort for event in sums}
    together: Counter[tuple[int, int, str]] = Counter()
    for (round, stage, name), cohort in taken.items():
        together[round, stage, plain_name(name)] += cohort
    most: dict[int, int] = {}
    for (round, _, _), cohort in together.items():
        most[round] = max(most.get(round, 0), cohort)
    return most


MODES = {
    "real": "the server saw sums alone",
    "accounted": "phases and bytes of the real one, without its cryptography: nothing was hidden",
    "off": "the server saw each contribution",
    "trusted": "an aggregator that sites trust saw each contribution, and whoever carried them none",
}


def secure_text(record: Mapping[str, Any]) -> str:
    """The record in a few sentences."""
    up, down = size_text(record["bytes_up_a_site"]), size_text(record["bytes_down_a_site"])
    site, server = (f"{record[name] * 1e3:.0f} ms" for name in ("seconds_a_site", "seconds_server"))
    saw = MODES[record["mode"]]
    if record["groups"] > 1 and record["mode"] == "real":
        saw = f"the server saw the sums of {record['groups']} groups"
    text = (
        f"Secure aggregation {record['mode']} ({saw}): {record['exchanges']} exchanges a "
        f"round, for which a site sends {up}, gets {down} and spends {site}, and the server {server}. "
        f"{record['bits']} bits a coordinate: rounding moves none of a mean by more than "
        f"{record['rounding']:.1e}"
    )
    if record.get("compression"):  # older runs do not say
        text += f", beside what compression rounds away (contributions travel as {record['compression']})"
    for key, what in (
        ("clipped", "coordinates were clipped"),
        ("shortened", "contributions were shortened"),
        ("later_attempts", "more attempts were needed"),
        ("burnt_rounds", "rounds were lost"),
    ):
        if record[key]:
            text += f"; {record[key]:,} {what}"
    if record.get("discarded_energy") is not None:  # older runs do not say
        text += (
            f". Truncation to the adapter's rank cut off at most {record['discarded_energy']:.2%} of the "
            "products' energy in a round"
        )
    if record["aggregator"]:
        text += f". Sealed to a simulated aggregator, whose key has the SHA-256 {record['aggregator']}…"
    return text + "."


def privacy_section(private: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The card's section on what protected the sites, in Markdown."""
    return (
        f"## Privacy\n\n{privacy_text(private)}{privacy_table(private)}\n\n{secure_text(record)} "
        "The adapter may have memorised training rows. This was a simulation on one machine: all rows were "
        "in one place, and nothing protected them from its operator."
    )
