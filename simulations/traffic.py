"""What a run moved between its sites and the server: from the run's own events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from wardround.runtime.events import BytesMoved, Event, RoundBurnt, RoundFolded
from wardround.runtime.sizes import size_text
from wardround.simulations.arm_names import FEDERATED


def traffic_record(events: Iterable[Event]) -> dict[str, Any]:
    """What stands under `traffic` in `summary.json`: everything that was sent, broadcasts among it.

    Means over sites and rounds, of those sites that were asked in a round; and each site's own of the whole
    run. The exchange that scores the last adapter is in the latter alone.
    """
    arm = [event for event in events if event.arm == FEDERATED]
    own = [event for event in arm if isinstance(event, BytesMoved)]
    rounds = {event.round for event in arm if isinstance(event, RoundFolded | RoundBurnt)}
    in_rounds = [event for event in own if event.round in rounds]
    places = len({(event.round, site) for event in in_rounds for site in event.down}) or 1
    up, down = Counter[str](), Counter[str]()
    for event in own:
        up.update(event.up)
        down.update(event.down)
    return {
        "bytes_up_a_site": round(sum(sum(event.up.values()) for event in in_rounds) / places),
        "bytes_down_a_site": round(sum(sum(event.down.values()) for event in in_rounds) / places),
        "sites": {site: {"bytes_up": up[site], "bytes_down": down[site]} for site in sorted(up | down)},
    }


def traffic_text(record: Mapping[str, Any]) -> str:
    """The record in a sentence."""
    up, down = size_text(record["bytes_up_a_site"]), size_text(record["bytes_down_a_site"])
    return f"In a round a site sends {up} in all, and gets {down}, the global adapter's bytes among them."
