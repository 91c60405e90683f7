"""A site's node, and offers of plans to it: what tests of both ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from federation import Federation

from wardround.client.keeper import own_keeper
from wardround.client.node import Node
from wardround.client.worker_app import node_of
from wardround.core.errors import BudgetError
from wardround.core.plan_offers import PlanAnswer, PlanOffer
from wardround.runtime.plan_folder import SIGNED
from wardround.server.consortium.server_folder import open_server_folder

COUNTS = {"aachen": 12, "basel": 9, "cork": 10}
RUN = "20261126-120000-0a1b2c3d"


def node(federation: Federation, name: str = "basel") -> Node:
    """The node of a site, as a started worker has it."""
    site = federation.practice.sites[name]
    return node_of(site, own_keeper(site), site.storage_key())


def offer(federation: Federation, **changes: Any) -> PlanOffer:
    """What the server offers."""
    server = open_server_folder(federation.practice.server)
    plain = PlanOffer(
        RUN,
        "basel",
        (federation.practice.folder / "plan" / SIGNED).read_bytes(),
        server.signed_certificate(),
        server.roster().roster().digest,
    )
    return replace(plain, **changes)


def set_up(federation: Federation, **settings: Any) -> None:
    """Change `site.yaml` of the site."""
    path = federation.practice.sites["basel"].path / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


def codes(answer: PlanAnswer) -> tuple[str, list[str]]:
    """Verdict and codes."""
    return answer.verdict, [reason.code for reason in answer.reasons]


def own_rows(federation: Federation, folder: Path) -> Path:
    """A copy of basel's rows, which its settings name from now on."""
    settings, rows = federation.practice.sites["basel"].path / "site.yaml", folder / "basel.jsonl"
    before = Path(yaml.safe_load(settings.read_text())["source"]["path"])
    rows.write_bytes(before.read_bytes())
    settings.write_text(settings.read_text().replace(str(before), str(rows)))
    return rows


def require_nothing_granted(federation: Federation) -> None:
    """A private run on basel's patients is accepted, and its first round refused: nothing bounds them."""
    data = (federation.practice.folder / "private" / SIGNED).read_bytes()
    run = RUN.replace("0a", "0b")
    assert codes(node(federation).answer(offer(federation, plan=data, run_id=run))) == ("accepted", [])
    site = node(federation).get((run, "basel"))
    assert site is not None
    assert site.privacy is not None
    with pytest.raises(BudgetError, match="without differential privacy"):
        site.privacy.reserve(site.plan, run, 1, cohort=3, coordinates=10)
