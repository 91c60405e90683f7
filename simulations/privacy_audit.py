"""`wardround audit privacy`: what a finished run's privacy is worth, tested on its own model, rules and rows.

The gate (sensitivity, noise, canaries) is run on the step that the run took, with the run's own sources of
randomness. Membership inference is done on what the run released, and reported. Nothing of a row is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from wardround.client.private import SitePrivacy
from wardround.core.errors import ConfigError, DataError, InternalError
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.core.seeds import Purpose, seed_for
from wardround.privacy.noise.source import RandomSource, RepeatableSource
from wardround.privacy.sums.noise import ring_noise
from wardround.simulations.finished_run import FinishedRun
from wardround.simulations.preparation import Preparation, prepare
from wardround.simulations.privacy import simulated_privacy
from wardround.training.examples import Example, parts_of
from wardround.training.plan_strategy import bind_strategy
from wardround.training.private.audit.canaries import canaries, is_powerless
from wardround.training.private.audit.findings import Finding, all_pass
from wardround.training.private.audit.membership import Asked, membership
from wardround.training.private.audit.noise import noise_of_run, noise_of_steps
from wardround.training.private.audit.ring import noise_of_sums
from wardround.training.private.audit.roc import Separation
from wardround.training.private.audit.sensitivity import sensitivity
from wardround.training.private.audit.stage import Stage, on_stage
from wardround.training.private.sampling import bounded_rows
from wardround.training.site_rows import SiteRows
from wardround.training.tasks.contract import Encoded

GATE_ROWS: Final = 32
"""Rows that batches of the gate are made of, over all lengths that there are."""
ASKED_ROWS: Final = 2000
"""Most rows of a side that membership inference asks about."""
ROUNDS: Final = (1, 2)
"""Of the run, whose noise is looked at."""


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        claim: The run's, or why there is none.
        gate: Findings of the three tests; none without differential privacy.
        untested: What of the gate was not run, and why.
        membership: Whose rows were asked about → score → how well it tells members from others.
        notices: What a reader should know.
    """

    claim: str
    gate: list[Finding] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    membership: dict[str, dict[str, Separation]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool | None:
        """Of the gate; None where it does not apply."""
        return all_pass(self.gate) if self.gate else None

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "claim": self.claim,
            "gate_passed": self.passed,
            "gate": [_record(finding) for finding in self.gate],
            "untested": self.untested,
            "membership": {
                rows: {name: asdict(found) for name, found in scores.items()}
                for rows, scores in self.membership.items()
            },
            "notices": self.notices,
        }


def _record(finding: Finding) -> dict[str, Any]:
    """JSON has no infinity: it becomes a word."""
    values = asdict(finding) | {"passed": finding.passed}
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def audit_privacy(
    run: Path, *, as_json: bool = False, designed: str | None = None, model: str | None = None
) -> Audit:
    """Audit a run and print what was found.

    Args:
        run: Folder of a finished run, whose rows lie where they lay.
        as_json: Print JSON.
        designed: Beginning of the ids of designed canaries: rows that somebody planted, some of them among
            the training rows and some among the test rows.
        model: The base model, where it lies elsewhere now.

    Raises:
        ConfigError: The folder is not that of a finished run.
        DataError: The rows are not those of the run, or there are too few to ask about.
        ModelError: The base model or the adapter is not the run's.
    """
    audit = audited(run, designed=designed, model=model)
    console = Console()
    if as_json:
        console.print_json(json.dumps(audit.record(), allow_nan=False, default=float))
    else:
        _print(audit, console)
    return audit


def audited(run: Path, *, designed: str | None = None, model: str | None = None) -> Audit:
    """As `audit_privacy`, without printing."""
    finished = FinishedRun.open(run)
    config = finished.config.model_copy(update={"model": finished.model_config(model)})
    prepared = prepare(config)
    _require_rows(run, prepared)
    bench, plan = prepared.bench, finished.plan
    released = bench.method.read_saved(run / "adapter", bench.model, plan.base)
    rules = plan.privacy
    audit = Audit("none: the run had no differential privacy, and the gate does not apply")
    if rules is not None:
        target = f"ε = {rules.epsilon:g}" if rules.epsilon is not None else f"σ = {rules.sigma:g}"
        audit = Audit(f"{target} at δ = {rules.delta:g} per {rules.unit}, {rules.noise} noise")
        bench.load_adapter(released)
        _gate(audit, prepared, plan)
    members, others, from_validation = _sides(prepared, plan)
    if not others:
        audit.notices.append("membership inference has nobody to compare with: no test rows, none held back")
        return audit
    if from_validation:
        audit.notices.append(
            "there are no test rows: what sites held back stands for rows that were not trained on"
        )
    for name, beginning in (("rows", None), ("designed canaries", designed)):
        pair = [_asked(prepared, plan, part, beginning, designed) for part in (members, others)]
        if name == "rows" or beginning is not None:
            audit.membership[name] = membership(bench, released, prepared.initial, *pair)
    return audit


def _gate(audit: Audit, prepared: Preparation, plan: TrainingPlan) -> None:
    """Run the three tests as far as the plan's kind of noise has them."""
    rules = plan.privacy
    if rules is None:
        raise InternalError("there is no gate without privacy")
    if rules.noise != "local":
        audit.gate.extend(_sums(prepared, plan))
        audit.untested.append("canaries: the noise is in the sums, and no step of a site has any")
    if not rules.trains_privately:
        audit.untested.append("sensitivity: a site's whole update is clipped, and no unit of its rows")
        return
    sides = list(_privacies(prepared, plan).items())
    name, privacy = max(sides, key=lambda side: side[1].cost.units)
    examples, _ = _split(prepared, plan, name)
    rows = _spread(_encoded(prepared, plan, examples))
    with on_stage(prepared.bench, privacy.private_round(1, None), rows) as stage:
        audit.gate.extend(sensitivity(stage))
        if rules.noise != "local":
            return
        stages = [Stage(stage.bench, stage.loud, side.private_round(round, None), stage.rows)
                  for _, side in sides[:2] for round in ROUNDS]  # fmt: skip
        if privacy.cost.bands:
            audit.gate.extend(noise_of_run(stages))
            audit.untested.append("canaries: theirs is a test of steps with noise of their own")
            return
        audit.gate.extend(noise_of_steps(stages))
        last = privacy.private_round(plan.rounds.rounds + 1, None)
        shown = canaries(
            Stage(stage.bench, stage.loud, last, stage.rows), seed=seed_for(plan.seed, Purpose.SAMPLES)
        )
        audit.gate.append(shown.finding)
        if is_powerless(shown):
            audit.notices.append(
                f"the canaries have no power against this claim: one run of {shown.canaries} of them shows "
                f"ε = {shown.most:.2f} at most"
            )


def _sums(prepared: Preparation, plan: TrainingPlan) -> list[Finding]:
    """The noise of the first rounds' sums."""
    central = plan.privacy is not None and plan.privacy.noise == "central"
    sites = len(prepared.rows.sites)
    size = bind_strategy(plan, allow_dotted=True).statistics_layout(0).size
    noise = ring_noise(plan, cohort=cohort_size(plan.rounds, sites), coordinates=size, round=1)
    if noise is None:
        raise InternalError("a plan with noise in its sums has none")
    sources: dict[str, RandomSource] = {}
    if central:
        sources = {
            f"round {round}": RepeatableSource(plan.seed, Purpose.NOISE, round=round, site="")
            for round in ROUNDS
        }
    else:
        for number, side in enumerate(_privacies(prepared, plan).values()):
            for round in ROUNDS:
                share = side.share(round)
                if share is not None:
                    sources[f"site {number + 1}, round {round}"] = share
    return noise_of_sums(noise, sources, central=central)


def _privacies(prepared: Preparation, plan: TrainingPlan) -> dict[str, SitePrivacy]:
    """Each site's side of the plan's privacy; no ledger is opened, since nothing is trained."""
    found = {}
    for name in prepared.rows.sites:
        examples, _ = _split(prepared, plan, name)
        units = [example.unit for example in examples]
        side = simulated_privacy(plan, name, SiteRows([], [], units), Path(name), None)
        if side is not None:
            found[name] = side
    return found


def _split(prepared: Preparation, plan: TrainingPlan, site: str) -> tuple[list[Example], list[Example]]:
    """A site's training rows, as far as the plan lets it use them, and what it held back."""
    examples, rules = prepared.rows.sites[site], plan.privacy
    parts = parts_of(plan, site, examples)
    training, held = ([examples[index] for index in part] for part in parts)
    if rules is not None and rules.unit == "example" and rules.most_examples is not None:
        seed = seed_for(plan.seed, Purpose.BATCH, site=site)
        units = [example.unit for example in training]
        training = [training[row] for row in bounded_rows(units, rules.most_examples, seed=seed)]
    return training, held


Named = list[tuple[str, Example]]
"""Where a row comes from, and the row."""


def _sides(prepared: Preparation, plan: TrainingPlan) -> tuple[Named, Named, bool]:
    """Rows that were trained on, rows that were not, and whether those are what sites held back."""
    members: Named = []
    held: Named = []
    for site in prepared.rows.sites:
        training, rest = _split(prepared, plan, site)
        members += [(site, example) for example in training]
        held += [(site, example) for example in rest]
    rows = prepared.rows
    test = [("test", example) for example in rows.test]
    if not test:
        test = [(f"test of {name}", example) for name, part in rows.site_tests.items() for example in part]
    return members, test or held, not test


def _asked(
    prepared: Preparation, plan: TrainingPlan, part: Named, beginning: str | None, designed: str | None
) -> Asked:
    """The rows to ask about: those whose id begins so, or all that are no designed canaries."""
    if beginning is not None:
        part = [(place, example) for place, example in part if example.id.startswith(beginning)]
    elif designed is not None:
        part = [(place, example) for place, example in part if not example.id.startswith(designed)]
    if len(part) > ASKED_ROWS:
        rng = np.random.default_rng(seed_for(plan.seed, Purpose.SAMPLES))
        part = [part[index] for index in sorted(rng.permutation(len(part))[:ASKED_ROWS])]
    by_patient = plan.data.unit_column is not None
    units = [example.unit if by_patient else f"{place}\x1f{example.number}" for place, example in part]
    return Asked(_encoded(prepared, plan, [example for _, example in part]), units)


def _encoded(prepared: Preparation, plan: TrainingPlan, examples: Iterable[Example]) -> list[Encoded]:
    """Each row in a sequence of its own."""
    bench = prepared.bench
    alone = prepared.plan.data.model_copy(update={"packing": False})
    return list(bench.task.encode(list(examples), bench.tokenizer, alone, plan.task))


def _spread(rows: Sequence[Encoded]) -> list[Encoded]:
    """Some rows of all lengths that there are."""
    order = sorted(rows, key=lambda row: row.length)
    places = np.linspace(0, len(order) - 1, min(GATE_ROWS, len(order))).round().astype(int)
    return [order[place] for place in places]


def _require_rows(run: Path, prepared: Preparation) -> None:
    """The rows have to be those of the run, and the run has to have ended.

    Raises:
        ConfigError: There is no record of the run, or no adapter.
        DataError: Other rows.
    """
    try:
        known = str(json.loads((run / "run.json").read_text(encoding="utf-8"))["rows_digest"])
        ended = (run / "adapter").is_dir()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{run} holds no run to audit", found=type(error).__name__, expected="run.json, whole"
        ) from error
    if not ended:
        raise ConfigError(
            f"the run in {run} has not ended", found="no adapter/", remedy="go on with it: resume=FOLDER"
        )
    if known != (now := prepared.rows.digest()):
        raise DataError(
            "the rows are not those of the run", found=f"rows of digest {now[:12]}",
            expected=f"rows of digest {known[:12]}: the same contents in the same order",
            remedy="bring the former rows back",
        )  # fmt: skip


def _print(audit: Audit, console: Console) -> None:
    table = Table(title="privacy audit", title_justify="left")
    for column in ("test", "found", "allowed", "verdict"):
        table.add_column(column, justify="left" if column in {"test", "verdict"} else "right")
    for finding in audit.gate:
        allowed = f"{finding.least:.4g} … {finding.most:.7g}"
        verdict = "passed" if finding.passed else "[bold red]FAILED[/]"
        table.add_row(finding.test, f"{finding.found:.7g}", allowed, verdict)
    for rows, scores in audit.membership.items():
        for name, found in scores.items():
            interval = f"{found.auc:.3f} ({found.low:.3f} … {found.high:.3f})"
            table.add_row(f"membership of {rows}, {name}: AUC", interval, "0.5 tells nothing", "reported")
            for hits in found.hits:
                table.add_row(
                    f"  found at {hits.false_alarms:.1%} false alarms",
                    f"{hits.rate:.2%} ({hits.found} of {found.members})",
                    f"{hits.allowed} of {found.others} false",
                    "reported",
                )
    console.print(table)
    console.print(f"claim: {audit.claim}", highlight=False)
    for finding in audit.gate:
        console.print(f"{finding.test}: {finding.note}", highlight=False)
    for line in (*(f"not tested: {what}" for what in audit.untested), *audit.notices):
        console.print(line, highlight=False)
    if audit.passed is not None:
        console.print("the gate passed" if audit.passed else "[bold red]the gate did not pass[/]")
