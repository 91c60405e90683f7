"""docs/site-check.md lists every check that there is, in order, with the limits that stand in the code."""

from __future__ import annotations

import re
from pathlib import Path

from wardround.client.doctor import judge_network, judge_plan, judge_site, probes_network
from wardround.client.doctor.findings import CHECKS
from wardround.server import probe_route

ROOT = Path(__file__).resolve().parents[4]
PAGE = (ROOT / "docs" / "site-check.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z ]+)` \| (.+) \|$", PAGE, flags=re.MULTILINE))


def test_every_check_is_on_the_page() -> None:
    """In the order of the output; each row has what it looks at and a remedy."""
    assert list(ROWS) == list(CHECKS)
    for check, row in ROWS.items():
        cells = [cell.strip() for cell in row.split(" | ")]
        assert cells[0], check
        assert cells[-1], check


def test_the_limits_on_the_page_are_the_codes() -> None:
    """A limit that is changed is changed on the page."""
    said = {
        "clock": (judge_network.CLOCK_WARN_S, judge_network.CLOCK_FAIL_S),
        "keys": (judge_site.WARN_DAYS,),
        "tcp": (probes_network.CONNECT_S,),
        "disk": (
            sum(judge_site.BYTES_A_COORDINATE.values()),
            judge_site.LEAST_DISK / 2**20,
            judge_site.LITTLE_DISK / 2**30,
        ),
        "dry step": (100 * judge_plan.SHARE_OF_MEMORY,),
        "bandwidth": (8 * judge_network.LEAST_RATE / 10**6,),
        "round trip": (judge_network.SLOW_S,),
    }  # fmt: skip
    for check, numbers in said.items():
        for number in numbers:
            assert re.search(rf"\b{number:g}\b", ROWS[check]), (check, number)
    assert judge_network.SHARE_OF_DEADLINE == 0.25
    assert judge_plan.SHARE_OF_DEADLINE == 0.5
    assert 2 * sum(probes_network.SIZES) < 2.25e6
    network = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
    assert f"{probe_route.PROBES} a minute and member" in network
    assert probe_route.MOST_AT_ONCE == 2
