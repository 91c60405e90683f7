"""A site that `wardround site check` looks at, and what it found, by check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from federation import Federation

from wardround.client.doctor.command import examine
from wardround.client.doctor.findings import CHECKS, Finding
from wardround.client.doctor.probes_site import look_into
from wardround.client.membership.site_folder import SiteFolder
from wardround.server.daemon import RunningServer

SITES = {"aachen": 24, "basel": 24, "cork": 24}
WITHOUT_PLAN = [check for check in CHECKS if check not in ("plan", "dry step", "estimate")]


@dataclass
class World:
    """A consortium whose server runs in this process.

    Attributes:
        federation: Its folders.
        server: Its server.
        plan: A signed plan's folder.
    """

    federation: Federation
    server: RunningServer
    plan: Path


def looked(site: SiteFolder, plan: Path | None = None, run: str | None = None) -> dict[str, Finding]:
    """Every finding by its check: each comes once, whatever the others came to."""
    found = list(examine(look_into(site.path), plan, run))
    assert len({finding.check for finding in found}) == len(found)
    expected = list(CHECKS) if plan or run else WITHOUT_PLAN
    assert sorted(finding.check for finding in found) == sorted(expected)
    return {finding.check: finding for finding in found}


def failing(found: dict[str, Finding]) -> list[str]:
    """The checks that fail."""
    return [check for check in CHECKS if check in found and found[check].status == "fails"]


def settle(site: SiteFolder, **changes: Any) -> None:
    """Change the site's settings."""
    path = site.path / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
