"""`wardround site logs` and `site support-bundle`: what is shown here, and that no canary gets out."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from federation import Federation
from hypothesis import given
from hypothesis import strategies as st
from members import private_bytes

from wardround.client.keeper import own_keeper
from wardround.client.log_reading import Entry, Wanted, entries, follow, parsed, wanted
from wardround.client.node import Node
from wardround.client.quiet_log import QuietFormatter
from wardround.client.redaction import GONE, Redactor, vocabulary
from wardround.client.worker_app import node_of
from wardround.core.errors import ConfigError
from wardround.core.plan_offers import PlanOffer
from wardround.runtime.log_file import LogFile
from wardround.runtime.plan_folder import SIGNED
from wardround.server.consortium.server_folder import open_server_folder

COUNTS = {"aachen": 12, "basel": 9, "cork": 10}
RUN = "20261126-120000-0a1b2c3d"
OTHER = "20261126-120000-ffffffff"
CANARY = "kanarienvogel"
SECRET = "zaunkoenigin"
FILE_CANARY = "rotkehlchen"
PASSPHRASE = "nachtigallenlied"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Three sites' folders, a plan in `plan`, and a ledger at basel."""
    federation = Federation.make(tmp_path_factory.mktemp("support"), tiny_bert, COUNTS)
    federation.plan("plan")
    federation.give_ledgers({"basel": 8.0}, delta=1e-3, allow_release=True)
    return federation


@pytest.fixture
def federation(made: Federation, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A copy that a test may spoil, where paths of sockets are short."""
    return made.copied(tmp_path_factory.mktemp("s") / "p")


@contextmanager
def logged(logs: Path) -> Iterator[None]:
    """What this process logs goes where a site's supervisor and worker put it."""
    logs.mkdir(exist_ok=True)
    worker = logging.FileHandler(logs / "worker.log")
    worker.setFormatter(QuietFormatter("%(asctime)s worker %(levelname)s %(message)s"))
    handlers = (LogFile(logs / "site.jsonl"), worker)
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def node(federation: Federation) -> Node:
    """The node of basel, as a started worker has it."""
    site = federation.practice.sites["basel"]
    return node_of(site, own_keeper(site), site.storage_key())


def offer(federation: Federation, run: str = RUN) -> PlanOffer:
    """What the server offers."""
    server = open_server_folder(federation.practice.server)
    plan = (federation.practice.folder / "plan" / SIGNED).read_bytes()
    return PlanOffer(run, "basel", plan, server.signed_certificate(), server.roster().roster().digest)


def set_up(federation: Federation, **settings: Any) -> None:
    """Change `site.yaml` of the site."""
    path = federation.practice.sites["basel"].path / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


def canary_rows(path: Path, **more: Any) -> str:
    """Rows with a canary in every value, the label aside."""
    rows = [
        {"note": f"{CANARY} {i}", "grade": ("mild", "severe")[i % 2], "patient": f"{CANARY}-{i // 2}", **more}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refuse_in_every_way(federation: Federation, folder: Path) -> None:
    """Offers that fail for the site's rows, model and settings, and one that is accepted."""
    own, number = node(federation), 0
    folder.mkdir()

    def asked(**settings: Any) -> None:
        nonlocal number
        number += 1
        set_up(federation, **settings)
        own.answer(offer(federation, f"{RUN}-{number}"))

    good = {"path": canary_rows(folder / f"{FILE_CANARY}.jsonl")}
    asked(source={"path": canary_rows(folder / "labels.jsonl", grade=CANARY)})
    asked(source={"path": canary_rows(folder / "blank.jsonl", note="")})
    asked(source={"path": str(folder / f"{FILE_CANARY}-absent.jsonl")})
    asked(source={**good, "where": {FILE_CANARY: CANARY}})
    asked(source=good, columns={"note": FILE_CANARY})
    asked(source=good, columns={}, models=[{"path": str(folder / FILE_CANARY)}])
    broken = folder / "broken.jsonl"
    broken.write_text(f"{{{CANARY}\n" * 5)
    asked(source={"path": str(broken)})
    set_up(federation, models=[{"path": str(federation.base)}], source=good)
    own.answer(offer(federation))


def everything(archive: Path) -> dict[str, bytes]:
    """Name → content."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_no_canary_is_in_logs_errors_or_bundle(
    federation: Federation, command_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and ids in none of them; names of files and columns, keys, a passphrase not in the bundle."""
    monkeypatch.setenv("WARDROUND_PASSPHRASE", PASSPHRASE)
    site = federation.practice.sites["basel"].path
    with logged(site / "logs"):
        refuse_in_every_way(federation, tmp_path / "rows")
        logging.getLogger("wardround.test").error(
            "fault", exc_info=ValueError(f"could not convert {SECRET!r}")
        )
        try:
            node(federation).read_plan(SECRET.encode() * 3)
        except Exception:
            logging.getLogger("wardround.test").exception("a message cannot be answered: %s", SECRET)
    shown = command_line(site, "site", "logs", "--folder", str(site), "--tracebacks")
    assert f"the plan of run {RUN}-1 is not accepted" in shown.stdout
    assert FILE_CANARY in shown.stdout, "its own people see which file"
    assert CANARY not in shown.stdout + shown.stderr
    said = command_line(site, "site", "support-bundle", str(tmp_path / "out.zip"), "--folder", str(site))
    files = everything(tmp_path / "out.zip")
    whole = b"\n".join(files.values()) + said.stdout.encode()
    for canary in (CANARY, SECRET, FILE_CANARY, PASSPHRASE):
        assert canary.encode() not in whole, canary
    for private in (
        str(tmp_path),
        str(federation.practice.folder),
        str(federation.base),
        "127.0.0.1",
        "aachen",
    ):
        assert private.encode() not in b"".join(files.values()), private
    keys = private_bytes(site)
    assert len(keys) >= 3
    for key in keys.values():
        for form in (key, key.hex().encode(), base64.b64encode(key)):
            assert form not in whole
    logs = json.loads(files["logs.json"])
    assert any(
        "not_enough_rows" in line["text"] or "labels that are not in the plan's list" in line["text"]
        for line in logs
    )
    assert any("read_signed_plan" in line.get("fault_at", "") for line in logs)
    assert any(line.get("fault_at") == "ValueError" for line in logs)


def test_the_bundle_says_what_is_in_it_and_what_is_not(
    federation: Federation, command_line: Any, tmp_path: Path
) -> None:
    """Versions, settings, runs, ledger by digest and figure; every file in the manifest with its size."""
    site, out = federation.practice.sites["basel"].path, tmp_path / "out.zip"
    with logged(site / "logs"):
        assert node(federation).answer(offer(federation)).verdict == "accepted"
    said = command_line(site, "site", "support-bundle", str(out), "--folder", str(site)).stdout
    files = everything(out)
    assert out.stat().st_mode & 0o777 == 0o600
    manifest = json.loads(files["manifest.json"])
    assert manifest["faults"] == []
    assert {name: about["bytes"] for name, about in manifest["files"].items()} == {
        name: len(data) for name, data in files.items() if name != "manifest.json"
    }
    for name in files:
        assert f"  {name}  {len(files[name])} bytes" in said
    for what in manifest["left_out"]:
        assert what in said
        assert what.encode() in files["README.txt"]
    (plan,) = json.loads(files["plans.json"])
    status = json.loads(files["status.json"])
    assert status["runs"] == [{"run": RUN, "plan": plan["plan"], "state": "accepted"}]
    assert status["processes"] is None
    assert (status["roster"]["members"], status["roster"]["this_site_is_one"]) == (3, True)
    settings = json.loads(files["settings.json"])
    assert settings["models"][0]["where"] == "elsewhere"
    assert settings["policy"]["least_cohort"] == 3
    assert GONE not in files["settings.json"].decode()
    ledger = json.loads(files["ledger.json"])
    assert ledger["cap"] == 8.0
    assert not any("unit" in key for key in ledger)
    assert json.loads(files["versions.json"])["packages"]["flwr"]
    again = command_line(site, "site", "support-bundle", str(out), "--folder", str(site), code=2)
    assert "is there already" in again.stderr


def test_a_broken_site_has_a_bundle_as_well(
    federation: Federation, command_line: Any, tmp_path: Path
) -> None:
    """What cannot be read is said, in words of our own; the rest is there."""
    site = federation.practice.sites["basel"].path
    (site / "site.yaml").write_text(f"source: [{CANARY}\n")
    rows = next((site / "ledger").glob("*.jsonl"))
    rows.write_text(rows.read_text().replace("0", "1", 3))
    (site / "runs" / RUN).mkdir(parents=True)
    (site / "runs" / RUN / "plan.signed.json").write_text(CANARY)
    said = command_line(
        site, "site", "support-bundle", str(tmp_path / "out.zip"), "--folder", str(site)
    ).stdout
    files = everything(tmp_path / "out.zip")
    faults = json.loads(files["manifest.json"])["faults"]
    assert [fault.partition(":")[0] for fault in faults] == [
        "settings.json", "status.json", "plans.json", "ledger.json",
    ]  # fmt: skip
    assert "is not YAML" in faults[0]
    assert all(fault in said for fault in faults)
    assert CANARY.encode() not in b"".join(files.values())


WORKER = (
    "2026-11-26 12:00:01,500 worker INFO a run {run} begins\n"
    "2026-11-26 12:00:03,000 worker WARNING the plan of run {run} is not accepted: no\n"
    "  found: one\n"
    "  remedy: two\n"
    "2026-11-26 12:00:05,000 worker ERROR fault\n"
    "Traceback (most recent call last):\n"
    '  File "/opt/lib/wardround/client/round.py", line 12, in answer\n'
    "ValueError: {canary}\n"
)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs of the three processes, in a time zone that is not UTC."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "worker.log").write_text(WORKER.format(run=RUN, canary=CANARY))
    (folder / "node.1.log").write_text("torn\n2026-11-26 12:00:00,000 node INFO first\n")
    (folder / "node.log").write_text("2026-11-26 12:00:04,000 node WARNING the server is not reached\n")
    lines = [
        {"time": f"2026-11-26T11:00:0{second}.000+00:00", "level": level, "logger": "x", "text": text}
        for second, level, text in ((2, "INFO", "second"), (6, "ERROR", f"last of {OTHER}"))
    ]
    (folder / "site.jsonl.1").write_text(json.dumps(lines[0]) + "\n")
    (folder / "site.jsonl").write_text(json.dumps(lines[1]) + '\n{"time": "2026-11-2')
    return folder


def test_the_logs_of_three_processes_are_one_story(logs: Path) -> None:
    """In order of time, several files and time zones; what is torn is passed over."""
    found = entries(logs, Wanted())
    assert [entry.source for entry in found] == [
        "node",
        "node",
        "worker",
        "site",
        "worker",
        "node",
        "worker",
        "site",
    ]
    assert found[4].text.splitlines()[1:] == ["  found: one", "  remedy: two"]
    assert (found[6].text, found[6].traceback.splitlines()[-1]) == ("fault", f"ValueError: {CANARY}")
    by_run = entries(logs, Wanted(run=RUN))
    assert {entry.source for entry in by_run} == {"worker"}
    noon = wanted("2026-11-26T12:00:03+01:00", "warning", None, 0.0)
    assert [entry.source for entry in entries(logs, noon)] == ["worker", "node", "worker", "site"]
    ago = wanted("1h", "info", None, found[-1].when + 3600)
    assert entries(logs, ago) == found[-1:]


@pytest.mark.parametrize("since", ["yesterday", "1", "h", "-1h", "1w"])
def test_a_time_or_level_that_is_none_is_refused(since: str) -> None:
    """By name."""
    with pytest.raises(ConfigError, match="--since"):
        wanted(since, "info", None, 0.0)
    with pytest.raises(ConfigError, match="--level"):
        wanted(None, "loud", None, 0.0)


def test_the_command_shows_them(federation: Federation, logs: Path, command_line: Any) -> None:
    """As lines or JSON; a traceback only where it is asked for."""
    site = federation.practice.sites["basel"].path
    shutil.copytree(logs, site / "logs", dirs_exist_ok=True)

    def shown(*more: str) -> str:
        return str(command_line(site, "site", "logs", "--folder", str(site), *more).stdout)

    assert "ERROR worker: fault (--tracebacks shows where)" in shown("--level", "error")
    assert CANARY not in shown()
    assert CANARY in shown("--tracebacks")
    records = [json.loads(line) for line in shown("--json", "--level", "warning").splitlines()]
    assert [record["level"] for record in records] == ["WARNING", "WARNING", "ERROR", "ERROR"]
    assert shown("--run", OTHER).count("\n") == 1


def test_follow_goes_on_over_a_new_file(logs: Path) -> None:
    """What is appended, what comes in a file that took the old one's place, and no half line."""
    shown: list[Entry] = []
    ended = threading.Event()
    since = Wanted(since=1.0)  # lines without a time of their own have that of the line before
    thread = threading.Thread(target=follow, args=(logs, since, shown.append, ended.is_set))
    thread.start()

    def come(text: str) -> None:
        until = time.monotonic() + 20
        while not any(text in entry.text for entry in shown) and time.monotonic() < until:
            time.sleep(0.05)
        assert any(text in entry.text for entry in shown), text

    try:
        time.sleep(0.3)
        line = "2026-11-26 12:00:09,000 worker INFO appended\n"
        with (logs / "worker.log").open("a") as file:
            file.write(line + line.replace("appended", "half")[:30])
        come("appended")
        with (logs / "worker.log").open("a") as file:
            file.write(" INFO late\n  remedy: come later\n")
        come("remedy")
        with (logs / "worker.log").open("a") as file:
            file.write("  and later\n")
        come("and later")
        (logs / "site.jsonl").rename(logs / "site.jsonl.2")
        record = {"time": "2026-11-26T11:00:10+00:00", "level": "INFO", "logger": "x", "text": "rolled over"}
        (logs / "site.jsonl").write_text(json.dumps(record) + "\n")
        come("rolled over")
        (logs / "node.log").write_text("2026-11-26 12:00:11,000 node INFO cut\n")
        come("cut")
    finally:
        ended.set()
        thread.join(20)
    late = ["late\n  remedy: come later", "  and later"]
    assert [entry.text for entry in shown] == ["appended", *late, "rolled over", "cut"]
    assert len({entry.when for entry in shown[:3]}) == 1


PASSES: dict[str, tuple[str, str]] = {
    "our words": ("the plan of run R is not accepted", "the plan of run R is not accepted"),
    "a count": ("12 of 4000 rows quarantined (3 × rows)", "12 of 4000 rows quarantined (3 × rows)"),
    "a digest": (f"found: {'ab' * 32}", f"found: {'ab' * 32}"),
    "a path": ("cannot read /srv/müller/rows.csv", f"cannot read {GONE}"),
    "a name": ("found: Müller-Lüdenscheidt", f"found: {GONE}"),
    "a date": ("found: 1978-03-01, 01.03.1978", f"found: {GONE}, {GONE}"),
    "an address": ("10.0.0.3:9443 and host.example", f"{GONE} and {GONE}"),
    "a long number": ("found: 4711081512", f"found: {GONE}"),
    "a quoted word": ("did you mean 'befund'?", f"did you mean '{GONE}'?"),
}  # fmt: skip


@pytest.mark.parametrize("what", PASSES)
def test_words_of_our_own_pass_and_nothing_else(what: str) -> None:
    """Spaces and signs stay where they are."""
    text, expected = PASSES[what]
    assert Redactor(frozenset({"R"})).text(text) == expected


@given(
    st.text(alphabet="qxzjv", min_size=6, max_size=20),
    st.sampled_from(["{}", "'{}'", "a={}", "x/{}.csv", "({}, 3)"]),
)
def test_an_unknown_word_never_passes(word: str, around: str) -> None:
    """However it is wrapped, as text, key or value."""
    found = Redactor().value({word: [around.format(word)]})
    assert word not in json.dumps(found)
    assert len(vocabulary()) > 1000
    assert list(parsed("worker", [word])) == [Entry(0.0, "INFO", "worker", word)]
