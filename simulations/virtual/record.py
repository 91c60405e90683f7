"""What a run took in virtual time, from its events: a record, a sentence, a table by round."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from wardround.runtime.events import BytesMoved, Evaluated, Event, RoundBurnt, RoundFolded, RoundTimed
from wardround.runtime.sizes import seconds_text
from wardround.simulations.arm_names import FEDERATED

ROUNDS_FILE: Final = "rounds.csv"


def virtual_record(events: Iterable[Event]) -> dict[str, Any] | None:
    """What stands under `virtual` in `summary.json`; None of a run without a virtual clock.

    Seconds of the federation: of the whole run, of a round on average and at most (folded and burnt ones),
    and how many of all were spent waiting for sites to come; `late` counts the sites that let a deadline
    pass, each once a round; and each site's own.
    """
    own = [event for event in events if event.arm == FEDERATED]
    timed = [event for event in own if isinstance(event, RoundTimed)]
    if not timed:
        return None
    rounds = {event.round for event in own if isinstance(event, RoundFolded | RoundBurnt)}
    durations = [event.virtual_s for event in timed if event.round in rounds]
    work: dict[str, float] = {}
    late = Counter(site for event in timed for site in event.late)
    for event in timed:
        for site, seconds in event.sites.items():
            work[site] = work.get(site, 0.0) + seconds
    return {
        "seconds": max(event.since_start_s for event in timed),
        "seconds_a_round": sum(durations) / len(durations) if durations else 0.0,
        "longest_round_s": max(durations, default=0.0),
        "waited_s": sum(event.waited_s for event in timed),
        "late": late.total(),
        "sites": {
            site: {"work_s": work.get(site, 0.0), "late_rounds": late[site]}
            for site in sorted({*work, *late})
        },
    }


def virtual_text(record: Mapping[str, Any], wall_s: float) -> str:
    """The record in a sentence."""
    text = (
        f"Virtual time: {seconds_text(record['seconds'])} ({seconds_text(wall_s)} on this machine), "
        f"{seconds_text(record['seconds_a_round'])} a round and at most "
        f"{seconds_text(record['longest_round_s'])}"
    )
    if record["waited_s"]:
        text += f", of all {seconds_text(record['waited_s'])} waiting for sites to come"
    if record["late"]:
        text += f"; sites let a deadline pass {record['late']:,} times"
    return text + "."


def round_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One record a round of the federation: both times, who was there, bytes, loss and validation scores.

    `virtual_clock_s` is the virtual time at the round's end. Scores are of the adapter after the round, which
    sites give in the round after it.
    """
    own = [event for event in events if event.arm == FEDERATED]
    timed = {event.round: event for event in own if isinstance(event, RoundTimed)}
    up, down = Counter[int](), Counter[int]()
    for event in own:
        if isinstance(event, BytesMoved):
            up[event.round] += sum(event.up.values())
            down[event.round] += sum(event.down.values())
    scores = {e.round: e.values for e in own if isinstance(e, Evaluated) and e.part == "validation"}
    rows = []
    for event in own:
        if not isinstance(event, RoundFolded | RoundBurnt):
            continue
        folded, time = event if isinstance(event, RoundFolded) else None, timed.get(event.round)
        rows.append(
            {
                "round": event.round,
                "wall_s": folded.wall_s if folded else None,
                "virtual_s": time.virtual_s if time else None,
                "virtual_clock_s": time.since_start_s if time else None,
                "waited_s": time.waited_s if time else None,
                "survivors": len(folded.survivors) if folded else 0,
                "missing": len(event.missing),
                "late": len(time.late) if time else None,
                "burnt": folded is None,
                "bytes_up": up[event.round],
                "bytes_down": down[event.round],
                "train_loss": folded.train_loss if folded else None,
                **{f"validation.{name}": value for name, value in scores.get(event.round, {}).items()},
            }
        )
    return rows


def round_table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The records as a CSV, figures in full; what a round lacks stays empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")
