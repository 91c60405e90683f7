"""A run at a glance, folded from its events; and an event as a sentence for the log. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from wardround.runtime.sizes import size_text

Record: TypeAlias = Mapping[str, Any]
"""An event as `runtime/events.py:as_record` writes it."""


@dataclass(frozen=True)
class SiteView:
    """What a site did last."""

    state: str
    round: int = 0
    code: str = ""
    reason: str = ""


@dataclass(frozen=True)
class RunView:
    """What the events so far come to.

    Attributes:
        name: The plan's name.
        round: The one that trains, or was folded last.
        rounds: All that the plan has.
        phase: What the run is at: `training`, `folded`, `burnt`, `finished`; empty before the first round.
        sites: Name → what it did last.
        answers: Member → what it last said to the offered plan, before the run began.
        metrics: Part and metric, such as `validation/accuracy` → its last figure.
        epsilon: Site → what it has reserved of privacy.
        bytes_down: To all sites, with the broadcasts.
        bytes_up: From all sites, in the rounds that were folded.
        released_round: The best one so far; 0 where none was scored, and at the end of a run that releases
            none.
    """

    name: str = ""
    round: int = 0
    rounds: int = 0
    phase: str = ""
    sites: Mapping[str, SiteView] = field(default_factory=dict)
    answers: Mapping[str, SiteView] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    epsilon: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    released_round: int = 0

    def after(self, event: Record) -> RunView:
        """The view with one more event; an event that it does not know changes nothing."""
        round = int(event.get("round") or 0)
        match event.get("event"):
            case "PlanAnswered":
                said = "; ".join(event["reasons"])
                answer = SiteView(str(event["verdict"]), 0, said.partition(":")[0], said)
                return replace(self, answers={**self.answers, event["site"]: answer})
            case "RunStarted":
                names = dict.fromkeys(event["sites"], SiteView("expected"))
                at = int(event["resumed_from"])
                return replace(
                    self, name=event["name"], round=at, rounds=event["rounds"], phase="started", sites=names
                )
            case "RoundStarted":
                asked = {site: SiteView("training", round) for site in event["cohort"]}
                return replace(
                    self, round=round, phase="training", sites={**self.sites, **asked},
                    bytes_down=self.bytes_down + event["bytes_down"],
                )  # fmt: skip
            case "SiteReplied":
                state = "answered" if event["status"] == "ok" else str(event["status"])
                seen = SiteView(state, round, event["code"], event["reason"])
                return replace(self, sites={**self.sites, event["site"]: seen})
            case "PrivacySpent":
                return replace(self, epsilon=dict(event["sites"]))
            case "Evaluated":
                found = {f"{event['part']}/{name}": value for name, value in event["values"].items()}
                numbers = {name: value for name, value in found.items() if value is not None}
                return replace(self, metrics={**self.metrics, **numbers})
            case "RoundFolded" | "RoundBurnt":
                phase = "folded" if event["event"] == "RoundFolded" else "burnt"
                up = self.bytes_up + int(event.get("bytes_up") or 0)
                return replace(self, round=round, phase=phase, bytes_up=up)
            case "Improved":
                return replace(self, released_round=round)
            case "RunFinished":
                best = int(event["best_round"]) if event["adapter_digest"] else 0
                return replace(self, round=event["last_round"], phase="finished", released_round=best)
        return self


def sentence(event: Record) -> tuple[str, str] | None:
    """Level and sentence of an event for the log; None of one that a log does not need."""
    match event.get("event"):
        case "PlanAnswered":
            said, version = str(event["verdict"]), str(event.get("version") or "")
            of = f" (Wardround {version})" if version else ""
            why = f": {'; '.join(event['reasons'])}" if event["reasons"] else ""
            return "info" if said == "accepted" else "warning", f"{event['site']}{of}: {said}{why}"
        case "RunStarted":
            sites = f"{event['rounds']} rounds, {len(event['sites'])} sites"
            resumed = f", goes on after round {event['resumed_from']}" if event["resumed_from"] else ""
            return "info", f"{event['name']} begins: {sites}{resumed}"
        case "RoundStarted":
            asked = f"{len(event['cohort'])} sites asked, {size_text(event['bytes_down'])}"
            stage = f", stage {event['stage']}" if event["stage"] else ""
            return "info", f"round {event['round']}{stage}: {asked}"
        case "SiteReplied" if event["status"] != "ok":
            why = event["reason"] or event["code"] or "no reason given"
            return "warning", f"round {event['round']}: {event['site']} {event['status']}: {why}"
        case "RoundFolded":
            missing = f", without {', '.join(event['missing'])}" if event["missing"] else ""
            counted = f"{len(event['survivors'])} contributions{missing}"
            return "info", f"round {event['round']} folded: {counted}, {event['wall_s']:.1f} s"
        case "RoundBurnt":
            return "warning", f"round {event['round']} burnt: {event['reason']}"
        case "Improved":
            return (
                "info",
                f"round {event['round']} is the best so far: {event['metric']} {event['value']:.4g}",
            )
        case "Notice":
            return str(event["level"]), str(event["text"])
        case "RunFinished":
            if not event["adapter_digest"]:
                ends = f"each site makes its own adapter after round {event['last_round']}, none is released"
                return "info", f"the run ended, {event['reason']}: {ends}"
            return "info", f"the run ended, {event['reason']}: round {event['best_round']} is released"
    return None
