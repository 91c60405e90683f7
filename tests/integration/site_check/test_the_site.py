"""`wardround site check` where something is wrong at the site: the very line fails, the others go on."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checked_site import WITHOUT_PLAN, World, failing, looked, settle
from federation import LABELS
from safetensors.numpy import load_file, save_file

from wardround.client.doctor import command, dry_process, dry_step
from wardround.client.doctor.command import check_site
from wardround.client.doctor.dry_step import Dry, try_out
from wardround.client.doctor.judge_plan import Tried
from wardround.client.history.history import FOLDER
from wardround.client.ledger.commands import create_ledger
from wardround.client.membership.site_folder import SiteFolder
from wardround.core.lora import pairs
from wardround.runtime.plan_folder import SIGNED, read_plan


def test_without_a_plan_nothing_fails(site: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin of all tests below; a person is told what was left out, and a script gets the same lines."""
    assert failing(looked(site)) == []
    assert check_site(site.path, plan=None, run=None, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "not looked at, for want of a plan" in shown
    assert check_site(site.path, plan=None, run=None, as_json=True) == 0
    assert [line["check"] for line in json.loads(capsys.readouterr().out)["checks"]] == WITHOUT_PLAN


def test_loose_permissions_are_told_all_at_once(site: SiteFolder) -> None:
    """Of a key and of the folder: the check goes on in a folder that a start would refuse."""
    (site.path / "keys" / "identity.key").chmod(0o644)
    site.path.chmod(0o755)
    found = looked(site)
    assert "keys" in failing(found)
    assert "keys/identity.key has mode 0644" in found["keys"].found
    assert "the site's folder has mode 0755" in found["keys"].found
    assert found["data"].status == "passes"


def test_settings_that_cannot_be_read_are_told(site: SiteFolder) -> None:
    """What stands on them waits."""
    (site.path / "site.yaml").write_text("models: []\n")
    found = looked(site)
    assert failing(found) == ["settings"]
    assert found["data"].found == "not looked at: 'settings' comes first"
    assert found["admitted"].status == "passes"


def test_too_little_disk_is_told(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the system says is free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    found = looked(site)
    assert failing(found) == ["disk"]
    assert "1.0 MB free" in found["disk"].found


def test_an_altered_ledger_is_told(world: World, site: SiteFolder) -> None:
    """By the row."""
    create_ledger(site.path / "ledger", {"epsilon": 3.0, "delta": 1e-4}, 12, None)
    assert looked(site)["ledger"].status == "passes"
    (rows,) = (site.path / "ledger").glob("*.jsonl")
    rows.write_bytes(rows.read_bytes().replace(b"3.0", b"9.0", 1))
    assert failing(looked(site)) == ["ledger"]


def test_a_model_that_is_not_there_is_told(site: SiteFolder) -> None:
    """Without a plan as well."""
    settle(site, models=[{"path": str(site.path / "no-such-model")}])
    found = looked(site)
    assert failing(found) == ["models"]


def test_a_source_that_is_not_there_is_told(site: SiteFolder) -> None:
    """With its own remedy."""
    settle(site, source={"path": str(site.path / "no-rows.jsonl")})
    assert failing(looked(site)) == ["data"]


# ---- with a plan


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry step in this process, between the same lines: another one would first import torch.

    The last test and that of a killed one start it, as does tests/deployment/test_site_check.py.
    """

    def tried(site: str, settings: Any, document: Any) -> Tried:
        values = {"settings": settings.model_dump(mode="json"), "plan": document.model_dump(mode="json")}
        lines: list[str] = []
        dry = Dry.model_validate_json(json.dumps({"site": site, **values}))
        try_out(dry, lambda part: lines.append(part.model_dump_json()))
        return dry_process.read_tried("\n".join(lines).encode(), 0, dry_process.LEAST_S)

    monkeypatch.setattr(command, "try_apart", tried)


@pytest.mark.usefixtures("here")
def test_wrong_weights_under_the_plans_digest_are_told(
    world: World, site: SiteFolder, tmp_path: Path
) -> None:
    """An entry that claims the plan's digest and holds other weights; the dry step waits for it."""
    base = tmp_path / "base"
    shutil.copytree(world.federation.base, base)
    weights = load_file(base / "model.safetensors")
    name = min(weights)
    save_file(weights | {name: weights[name] + 1}, base / "model.safetensors", {"format": "pt"})
    digest = read_plan(world.plan).plan.base.digest
    settle(site, models=[{"path": str(base), "digest": digest}])
    found = looked(site, world.plan)
    assert failing(found) == ["models"]
    assert "base has other weights than its digest in site.yaml says" in found["models"].found
    assert found["dry step"].found == "not looked at: 'models' comes first"


@pytest.mark.usefixtures("here")
def test_a_column_that_is_missing_is_told_without_a_value(
    world: World, site: SiteFolder, tmp_path: Path
) -> None:
    """The plan reads it; the dry step needs no row."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"note": "secret text", "patient": "p1"}\n' * 9)
    settle(site, source={"path": str(rows)})
    found = looked(site, world.plan)
    assert failing(found) == ["data"]
    assert "secret" not in str(found)
    assert found["dry step"].status == "passes"
    assert found["estimate"].found == "not looked at: 'data' comes first"


def unsigned(world: World, path: Path, **data: Any) -> Path:
    """A plan with another data contract, that nobody signed."""
    document = read_plan(world.plan)
    plan = document.plan
    changed = plan.model_copy(update={"data": plan.data.model_copy(update=data)})
    path.write_bytes(document.model_copy(update={"plan": changed}).canonical())
    return path


@pytest.mark.usefixtures("here")
def test_rows_longer_than_the_model_reads_are_told(world: World, site: SiteFolder, tmp_path: Path) -> None:
    """Before anything is stepped; and that nobody signed the plan."""
    found = looked(site, unsigned(world, tmp_path / "long.json", max_length=4096))
    assert failing(found) == ["models"]
    assert (
        "at most 128 tokens" in str(found["models"]) or "more than the model reads" in found["models"].found
    )
    assert "nobody has signed it" in found["plan"].found


def test_a_batch_that_memory_does_not_hold_is_told(
    world: World, site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed in its step, as the system kills: the models that it had found stand."""
    code = (
        "import os, signal\n"
        "from wardround.client.doctor import dry_step\n"
        "dry_step.measure_step = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "dry_step.main()\n"
    )
    killed = partial(dry_process.try_apart, command=(sys.executable, "-c", code))
    monkeypatch.setattr(command, "try_apart", killed)
    found = looked(site, world.plan)
    assert failing(found) == ["dry step"]
    assert "killed" in found["dry step"].found
    assert "microbatch_size" in found["dry step"].remedy
    assert found["models"].status == "passes"


@pytest.mark.usefixtures("here")
def test_a_policy_that_refuses_the_plan_is_told(world: World, site: SiteFolder) -> None:
    """Where the plan is looked at, before its rows are."""
    settle(site, policy={"modes": ["trusted"], "aggregator": "0" * 64})
    assert "plan" in failing(looked(site, world.plan))


def test_another_consortiums_plan_is_told(world: World, site: SiteFolder, named: Any) -> None:
    """And what stands on it waits; a run that was never offered likewise."""
    found = looked(named.sites["aachen"], world.plan / SIGNED)
    assert "plan" in failing(found)
    assert found["dry step"].found == "not looked at: 'plan' comes first"
    found = looked(site, run="no-such-run")
    assert failing(found) == ["plan"]
    assert LABELS[0] not in str(found)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, its mode and what is in it; but for the history, which has each question to the server."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if FOLDER not in path.relative_to(folder).parts
    }


def test_a_run_that_was_offered_is_looked_at_by_its_name(world: World, site: SiteFolder) -> None:
    """As its plan: the line says that the consortium signed it. All is well, and nothing is left behind.

    No row, id or file of rows is in what was found.
    """
    offered = site.path / "runs" / "run-1"
    offered.mkdir(parents=True)
    shutil.copy(world.plan / SIGNED, offered / "plan.signed.json")
    before = contents(site.path)
    found = looked(site, run="run-1")
    assert contents(site.path) == before
    assert failing(found) == []
    assert found["dry step"].status == "passes"
    assert "of 16 tokens" in found["dry step"].found
    assert not [secret for secret in ("case 1", "aachen1", "aachen.jsonl") if secret in str(found)]
    assert "signed by the consortium" in found["plan"].found
    assert found["estimate"].status == "passes"


@pytest.mark.usefixtures("here")
def test_the_dry_step_is_of_the_sites_own_rank(
    world: World, site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is what will be trained; a rank that the plan cannot take is told with its remedy."""
    ranks: list[int] = []
    train = dry_step.train_locally

    def recording(bench: Any, job: Any) -> Any:
        ranks.append(pairs(job.before.layout)[0].rank)
        return train(bench, job)

    monkeypatch.setattr(dry_step, "train_locally", recording)
    assert looked(site, world.plan)["dry step"].status == "passes"
    settle(site, rank=1)
    assert looked(site, world.plan)["dry step"].status == "passes"
    assert ranks == [2, 2, 1, 1]
    settle(site, rank=3)
    found = looked(site, world.plan)["dry step"]
    assert found.status == "fails"
    assert "is sent factors" in found.found
    assert "lower this site's rank" in found.remedy
