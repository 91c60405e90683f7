"""`wardround site check` where something is wrong on purpose: the very line fails, and the others go on."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from federation import LABELS, Federation, reroute
from pki import make_ca, make_server
from safetensors.numpy import load_file, save_file
from tls_faults import ConnectProxy, tls_server

from wardround.client.doctor import command, dry_process, probes_network
from wardround.client.doctor.command import check_site, examine
from wardround.client.doctor.dry_step import Dry, try_out
from wardround.client.doctor.findings import CHECKS, Finding
from wardround.client.doctor.judge_plan import Tried
from wardround.client.doctor.probes_site import look_into
from wardround.client.fetching import fetch_roster
from wardround.client.history.history import FOLDER
from wardround.client.ledger.commands import create_ledger
from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.core.errors import UnreachableError
from wardround.runtime.plan_folder import SIGNED, read_plan
from wardround.server.consortium.server_folder import open_server_folder
from wardround.server.daemon import RunningServer, running_server
from wardround.simulations.practice import making
from wardround.simulations.practice.making import free_port

SITES = {"aachen": 24, "basel": 24, "cork": 24}
WITHOUT_PLAN = [check for check in CHECKS if check not in ("plan", "dry step", "estimate")]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that runs the tests is behind."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[World]:
    """Three sites and their server."""
    made = Federation.make(tmp_path_factory.mktemp("f"), tiny_bert, SITES)
    with running_server(made.practice.server) as server:
        yield World(made, server, made.plan("plan"))


@pytest.fixture
def site(world: World, tmp_path: Path) -> SiteFolder:
    """A copy of a site to spoil."""
    path = tmp_path / "aachen"
    shutil.copytree(world.federation.practice.sites["aachen"].path, path)
    path.chmod(0o700)
    return open_site_folder(path)


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


def test_without_a_plan_nothing_fails(site: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin of all tests below; a person is told what was left out, and a script gets the same lines."""
    assert failing(looked(site)) == []
    assert check_site(site.path, plan=None, run=None, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "not looked at, for want of a plan" in shown
    assert check_site(site.path, plan=None, run=None, as_json=True) == 0
    assert [line["check"] for line in json.loads(capsys.readouterr().out)["checks"]] == WITHOUT_PLAN


# ---- the way


def test_an_inspecting_proxy_is_named(site: SiteFolder, tmp_path: Path) -> None:
    """A server under another CA than the consortium's: by its issuer; nothing else is asked of it."""
    make_server(tmp_path, make_ca(tmp_path))
    with tls_server(tmp_path / "server.pem", tmp_path / "server.key") as address:
        reroute(site, address)
        found = looked(site)
    assert failing(found) == ["tls"]
    assert "something on the way opens TLS" in found["tls"].found
    assert "'test CA'" in found["tls"].found
    for check in ("clock", "versions", "admitted", "round trip", "bandwidth"):
        assert found[check].found == "not looked at: 'tls' comes first"


@pytest.mark.parametrize(
    ("shift_s", "status"), [(60, "warns"), (-60, "warns"), (900, "fails"), (-900, "fails")]
)
def test_a_clock_that_is_off_is_told(world: World, site: SiteFolder, shift_s: int, status: str) -> None:
    """By the server's own date; what else that server cannot say is told as well."""
    own = open_server_folder(world.federation.practice.server)
    with tls_server(own.tls_certificate, own.tls_key, shift_s=shift_s) as address:
        reroute(site, address)
        found = looked(site)
    assert found["tls"].status == "passes"
    assert found["clock"].status == status
    assert ("behind" if shift_s > 0 else "ahead of") in found["clock"].found


def test_a_closed_port_is_told(site: SiteFolder) -> None:
    """And no certificate is judged."""
    reroute(site, f"127.0.0.1:{free_port()}")
    found = looked(site)
    assert failing(found) == ["tcp", "tls"]
    assert "refused" in found["tcp"].found


def test_a_port_without_tls_is_told(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else listens there, and waits for what it understands."""
    monkeypatch.setattr(probes_network, "TIMEOUT", httpx.Timeout(0.5))
    proxy = ConnectProxy({})
    with proxy.running() as address:
        reroute(site, address)
        assert failing(looked(site)) == ["tls"]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name under `.test` is resolved: nobody is asked."""
    real = socket.getaddrinfo

    def resolved(host: Any, *rest: Any, **named: Any) -> Any:
        if str(host).endswith(".test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.usefixtures("nowhere")
def test_a_name_that_is_not_resolved_is_told(site: SiteFolder) -> None:
    """With the name."""
    reroute(site, "server.test:9443")
    found = looked(site)
    assert "dns" in failing(found)
    assert "server.test" in found["dns"].found


@pytest.fixture
def named(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Any:
    """A consortium whose server is reached by a name that only the proxy knows."""
    folder = tmp_path_factory.mktemp("n")
    rows = {"aachen": folder / "rows.jsonl"}
    rows["aachen"].write_text('{"note": "a", "grade": "mild", "patient": "p"}\n')
    settings = {"models": [{"path": str(tiny_bert)}], "source": {"path": str(rows["aachen"])}}
    return making.make_practice(folder / "p", "server.test:9443", {"aachen": settings}, datetime.now(UTC))


@pytest.mark.usefixtures("nowhere")
def test_a_connect_proxy_is_the_only_way_out(named: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it goes there, under a login that is not printed; `site fetch` and the roster's question too."""
    site = named.sites["aachen"]
    with running_server(named.server, "127.0.0.1:0") as server:
        proxy = ConnectProxy({"server.test:9443": server.link.address}, login="ward:hush-hush")
        with proxy.running() as address:
            with pytest.raises(UnreachableError):
                fetch_roster(site)
            monkeypatch.setenv("HTTPS_PROXY", f"http://ward:hush-hush@{address}")
            assert fetch_roster(site) == (named.operator / "roster.json").read_bytes()
            found = looked(site)
    assert failing(found) == []
    assert address in found["proxy"].found
    assert "is for the proxy to resolve" in found["dns"].found
    assert set(proxy.asked) == {"CONNECT server.test:9443"}
    assert "hush" not in str(found)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("login", "word"), [(None, "403"), ("ward:hush-hush", "407")])
def test_a_proxy_that_refuses_is_told(
    named: Any, monkeypatch: pytest.MonkeyPatch, login: str | None, word: str
) -> None:
    """Its answer stands in the line."""
    with ConnectProxy({}, login).running() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        found = looked(named.sites["aachen"])
    assert failing(found) == ["tls"]
    assert word in found["tls"].found


def test_a_site_that_is_not_admitted_is_told(site: SiteFolder) -> None:
    """Its name is nobody's in the server's roster."""
    about = site.path / "site.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"site": "nobody"}))
    found = looked(site)
    assert "admitted" in failing(found)
    assert "401" in found["admitted"].found
    assert found["clock"].status == "passes"


# ---- the site


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
