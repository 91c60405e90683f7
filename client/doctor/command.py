"""`wardround site check`: every look in its turn, whatever the one before came to, and the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wardround.client.doctor import probes_network as network
from wardround.client.doctor import probes_site as probes
from wardround.client.doctor.dry_process import try_apart
from wardround.client.doctor.findings import (
    CHECKS,
    OF_A_PLAN,
    Finding,
    as_values,
    exit_code,
    of_error,
    unseen,
    worst,
)
from wardround.client.doctor.judge_network import (
    Presented,
    RoundBytes,
    after_tls,
    judge_admitted,
    judge_bandwidth,
    judge_clock,
    judge_name,
    judge_proxy,
    judge_round_trip,
    judge_tcp,
    judge_tls,
    judge_versions,
)
from wardround.client.doctor.judge_plan import judge_estimate, judge_step
from wardround.client.doctor.judge_site import (
    RowsOfPlan,
    judge_data,
    judge_device,
    judge_disk,
    judge_keys,
    judge_ledger,
    judge_models,
    judge_plan,
    judge_settings,
)
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.site_settings import FILE, SiteSettings, read_site_settings
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError
from wardround.core.plan import TrainingPlan
from wardround.privacy.sums.form import Form
from wardround.runtime.server_about import ours

COLOURS: Final = {"passes": "green", "warns": "yellow", "fails": "red"}
T = TypeVar("T")


def check_site(folder: Path, *, plan: Path | None, run: str | None, as_json: bool) -> int:
    """Look at everything, print a line for each, and give the exit code: 1 where something fails.

    Args:
        folder: Of the site.
        plan: A plan's folder or file, for what only a plan decides.
        run: Or a run that was offered to this site.
        as_json: Print JSON.

    Raises:
        StorageError: The folder is no site's.
        ConfigError: Plan and run are both named.
    """
    if plan is not None and run is not None:
        raise ConfigError("a plan and a run are named", expected="one of --plan and --run")
    site = probes.look_into(folder)
    findings = []
    with Console(stderr=True).status("looking") as status:
        for finding in examine(site, plan, run):
            findings.append(finding)
            status.update(f"looked at: {finding.check}")
    findings.sort(key=lambda finding: list(CHECKS).index(finding.check))
    if as_json:
        shown = {"site": site.name, "server": site.server_address, "checks": as_values(findings)}
        sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
    else:
        print_findings(site, findings, Console(), planned=plan is not None or run is not None)
    return exit_code(findings)


def examine(site: SiteFolder, plan: Path | None, run: str | None) -> Iterator[Finding]:
    """Every finding, in the order of the looks; none ends the others, and nothing is written or charged."""
    now = datetime.now(UTC)
    yield _seen("keys", lambda: judge_keys(
        probes.guarded_files(site), probes.key_faults(site, now), probes.ends_of(site), now,
        probes.keys_locked(site),
    ))  # fmt: skip
    settings, finding = _tried("settings", lambda: read_site_settings(site.path / FILE))
    if settings is None:
        yield _present(finding)
    else:
        yield judge_settings(len(settings.models), policy_text(settings))
    named, unnamed = _tried("plan", lambda: probes.named_plan(site, plan, run))
    asked = plan is not None or run is not None
    document, signed = named if named is not None else (None, False)
    yield from _of_site(site, settings, document)
    if unnamed is not None:
        yield unnamed
    elif document is not None:
        yield _seen("plan", lambda: judge_plan(
            document.plan.name, probes.faults_of(document, settings), signed=signed
        ))  # fmt: skip
    yield from _of_server(site, document.plan if document else None)
    yield from _of_training(site, settings, document, asked=asked)


def _of_site(
    site: SiteFolder, settings: SiteSettings | None, document: SignedPlan | None
) -> Iterator[Finding]:
    plan = document.plan if document else None
    yield _seen("ledger", lambda: judge_ledger(probes.ledger_seen(site), plan))
    size = plan.adapter.layout.size if plan else None
    yield _seen("disk", lambda: judge_disk(
        probes.free_disk(site.path), size, writable=probes.is_writable(site.path)
    ))  # fmt: skip
    if settings is None:
        yield unseen("device", "settings")
    else:
        yield _seen("device", lambda: judge_device(*probes.device_of(settings)))


def _of_server(site: SiteFolder, plan: TrainingPlan | None) -> Iterator[Finding]:
    way = network.find_way(site.server_address)
    yield judge_name(way, network.resolve(way))
    yield judge_proxy(way)
    yield judge_tcp(way, network.reach(way))
    shown, finding = _tried("tls", lambda: network.shown_by(way, site.ca, site.authorities()))
    yield finding or judge_tls(way, shown or "nothing")
    if not isinstance(shown, Presented) or not shown.verified:
        yield from after_tls()
        return
    health, finding = _tried("round trip", lambda: network.health_of(way, site.ca))
    if health is None:
        yield _present(finding)
        yield from (unseen(check, "round trip") for check in ("clock", "bandwidth"))
    else:
        yield judge_round_trip(health.seconds)
        yield judge_clock(health.skew_s, max(health.seconds))
    about, finding = _tried("admitted", lambda: network.ask_about(site))
    if about is None:
        yield _present(finding)
        yield unseen("versions", "admitted")
    else:
        yield _seen("admitted", lambda: judge_admitted(
            *about, transport=probes.transport_of(site), roster=site.roster().version
        ))  # fmt: skip
        yield unseen("versions", "admitted") if about[1] else judge_versions(ours(), about[0])
    if health is not None:
        trip = min(health.seconds)
        yield _seen("bandwidth", lambda: judge_bandwidth(network.measure(site, way, trip), moved_by(plan)))


def _of_training(
    site: SiteFolder, settings: SiteSettings | None, document: SignedPlan | None, *, asked: bool
) -> Iterator[Finding]:
    if settings is None:
        yield from (unseen(check, "settings") for check in ("models", "data"))
        yield from (unseen(check, "settings") for check in OF_A_PLAN[1:] if asked)
        return
    seen, finding = _tried("data", lambda: probes.rows_seen(settings))
    found, unfound = _tried("data", lambda: _rows_of(document, settings, site.name))
    judged = [judge_data(seen, found)] if seen is not None else []
    yield worst("data", [*judged, *(one for one in (finding, unfound) if one is not None)])
    if document is None:
        yield _seen("models", lambda: judge_models(probes.models_there(settings), of_plan=False))
        yield from (unseen(check, "plan") for check in OF_A_PLAN[1:] if asked)
        return
    free, _ = _tried("device", lambda: probes.device_of(settings)[1])
    tried, finding = _tried("models", lambda: try_apart(site.name, settings, document))
    if tried is None:
        yield _present(finding)
        yield from (unseen(check, "models") for check in OF_A_PLAN[1:])
        return
    yield judge_models(tried.models, of_plan=True, why=tried.why, remedy=tried.remedy)
    yield judge_step(tried, free, document.plan.data.max_length)
    steps, finding = _tried("estimate", lambda: _steps(document.plan, found))
    yield finding or judge_estimate(tried.step, steps, document.plan.rounds.deadline_s)


def _rows_of(document: SignedPlan | None, settings: SiteSettings, site: str) -> RowsOfPlan | None:
    return None if document is None else probes.rows_of_plan(settings, document.plan, site)


def _steps(plan: TrainingPlan, rows: RowsOfPlan | None) -> int | None:
    return None if rows is None else probes.steps_a_round(plan, rows)


def moved_by(plan: TrainingPlan | None) -> RoundBytes | None:
    """What a round moves at a site, at the least: its contribution, and the adapter in float32."""
    if plan is None:
        return None
    size = plan.adapter.layout.size
    sent = Form.of(plan).size(size, plan.encoding.bits)
    return RoundBytes(sent, 4.0 * size, plan.rounds.deadline_s)


def policy_text(settings: SiteSettings) -> str:
    """The policy in a few words."""
    policy = settings.policy
    return (
        f"{' or '.join(policy.modes)} aggregation, cohort of {policy.least_cohort}, "
        f"{policy.least_honest} honest, {settings.approval} approval"
    )


def print_findings(site: SiteFolder, findings: list[Finding], console: Console, *, planned: bool) -> None:
    """A table, and what was left out."""
    table = Table(
        "check",
        "",
        "found",
        "remedy",
        title=f"{site.name}, server {site.server_address}",
        title_justify="left",
    )
    for column in table.columns[2:]:
        column.overflow = "fold"
    for finding in findings:
        colour = COLOURS[finding.status]
        table.add_row(
            finding.check,
            f"[{colour}]{finding.status}[/{colour}]",
            escape(finding.found),
            escape(finding.remedy),
        )
    console.print(table)
    if not planned:
        console.print(
            f"not looked at, for want of a plan (--plan or --run): {', '.join(OF_A_PLAN)}",
            markup=False,
            highlight=False,
        )
    count = sum(finding.status == "fails" for finding in findings)
    console.print(f"{count} fail{'s' * (count == 1)}" if count else "nothing fails", highlight=False)


def _tried(check: str, look: Callable[[], T]) -> tuple[T | None, Finding | None]:
    """What a look gave, or the finding of its error."""
    try:
        return look(), None
    except Exception as error:  # noqa: BLE001 - the other lines count
        return None, of_error(check, error)


def _seen(check: str, look: Callable[[], Finding]) -> Finding:
    found, finding = _tried(check, look)
    return finding or _present(found)


def _present(finding: Finding | None) -> Finding:
    assert finding is not None  # noqa: S101 - a look gives its value or a finding
    return finding
