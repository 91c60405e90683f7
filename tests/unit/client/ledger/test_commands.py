"""`wardround ledger`: what people see, what an export proves, what is refused with which exit code."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from wardround import cli
from wardround.client.ledger import charging, summary
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.row_file import FILE
from wardround.client.ledger.units import FOLDER, read_list
from wardround.core.errors import BudgetError, ConfigError, StorageError
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import NoPrivacy, SampledGaussian

IDS = [f"patient {i}" for i in range(20)]
SIGNED = ["--who", "Dr Test", "--why", "the board decided"]


def run(*arguments: object) -> Result:
    """What a person sees; an error of ours is raised."""
    asked = ["ledger", *map(str, arguments)]
    result = CliRunner().invoke(cli.app, asked, env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def used(folder: Path, ledger: Ledger, asked: Any) -> Path:
    """A ledger with two runs, a refusal, a seal and a settled round; closed."""
    source = ledger.source("ward [a]", IDS)
    for round in (1, 2):
        reservation = asked.reserve(ledger, source, round)
    ledger.settle(reservation, 4)
    ledger.seal(run="run", round=1, stage=0, digest="11" * 32)
    asked.reserve(ledger, source, 3, draw="second")
    asked.reserve(ledger, source, 3, draw="third")
    asked.reserve(ledger, ledger.source("part", IDS[:5]), run="other run")
    with pytest.raises(BudgetError):
        asked.reserve(ledger, source, 4, mechanism=NoPrivacy())
    ledger.close()
    return folder


def test_show_has_each_reservation_each_run_the_cap_and_what_is_left(used: Path) -> None:
    """ε of each, alone and in all; extra draws and refusals are counted."""
    shown = run("show", used).output
    for line in (
        "ward [a]", "10 × q 0.01, σ 2", "4 × q 0.01, σ 2", "highest ε = ", "ε reserved", "ε by losses",
        "per patient and site, as reserved by Rényi DP", "cap ε = 3", "left at Rényi order", "other run",
    ):  # fmt: skip
        assert line in shown, line
    row = next(line for line in shown.splitlines() if line.startswith("│ run ") and "σ" not in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:5] == ["3", "1", "1", "1"]
    assert run("show", used, "--last", 1).output.count("σ 2") == 1


def test_show_as_json_is_what_the_ledger_says(used: Path) -> None:
    """Every reservation, with the steps that count; figures are those of the ledger."""
    shown = json.loads(run("show", used, "--json").output)
    with Ledger.open(used) as ledger:
        source = ledger.source("ward [a]", IDS)
        total = ledger.epsilon(source).value
        part = ledger.epsilon(source, run="run").value
    assert shown["highest"] == {"value": total, "delta": 1e-5, "unit": "patient", "accountant": "renyi"}
    assert shown["runs"][0]["epsilon"]["value"] == part
    assert [line["steps"] for line in shown["reservations"]] == [10, 4, 10, 10, 10]
    assert shown["left"] == pytest.approx(3 - total, rel=1e-9)
    assert {tuple(line["sources"]): line["units"] for line in shown["classes"]} == {
        ("ward [a]",): 15,
        ("ward [a]", "part"): 5,
    }
    assert (shown["refusals"], shown["cap"], shown["units"]) == (1, 3.0, 20)


def test_show_has_what_each_run_reserved_and_what_its_losses_come_to(used: Path) -> None:
    """Of the worst-off patient: she is in both sources, each run by itself, as its plan fixed it."""
    shown = json.loads(run("show", used, "--json").output)["runs"]
    for line, steps in zip(shown, (34, 10), strict=True):
        account = Account(mechanisms=(SampledGaussian(sample_rate=0.01, sigma=2.0, steps=steps),))
        losses = account.fixed_schedule_epsilon(1e-5, units=1000).value
        assert line["reported"]["value"] == pytest.approx(losses, rel=1e-9)
        assert line["reported"]["accountant"] == "losses"
        assert 0 < line["reported"]["value"] < line["epsilon"]["value"]
    table = run("show", used).output
    assert f"{shown[0]['epsilon']['value']:.4g}" in table
    assert f"{shown[0]['reported']['value']:.4g}" in table


def test_the_losses_of_a_run_are_those_of_its_worst_off_patient(ledger: Ledger, asked: Any) -> None:
    """Of two wards whose patients a person signed to be others, each with steps of its own."""
    wards, steps = {"a": IDS[:10], "b": IDS[10:]}, {"a": 10, "b": 40}
    mechanisms = {
        name: SampledGaussian(sample_rate=0.01, sigma=2.0 + 0.1 * (name == "b"), steps=steps[name])
        for name in wards
    }
    for round, (name, ids) in enumerate(wards.items(), 1):
        source = ledger.source(name, ids)
        if name == "b":
            ledger.declare_disjoint(source, who="Dr Test", why="the board decided")
        asked.reserve(ledger, source, round, mechanism=mechanisms[name])
    found = charging.reported(ledger.book, [0, 1], "run")
    alone = [
        Account(mechanisms=(mechanisms[name],)).fixed_schedule_epsilon(1e-5, units=1000).value
        for name in wards
    ]
    assert found.value == max(alone) > min(alone)


def test_a_patient_of_two_sources_of_a_run_has_lost_to_both(ledger: Ledger, asked: Any) -> None:
    """Her losses compose; whoever is in one of them alone costs no more."""
    for round, ids in enumerate((IDS, IDS[:5]), 1):
        asked.reserve(ledger, ledger.source(f"{len(ids)} of them", ids), round)
    both = Account(mechanisms=(asked.STEP, asked.STEP)).fixed_schedule_epsilon(1e-5, units=1000).value
    assert charging.reported(ledger.book, [0, 1], "run").value == both


def test_show_composes_the_losses_of_the_last_runs_alone(
    ledger: Ledger, folder: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes about a second; of earlier ones it says that nobody asked."""
    monkeypatch.setattr(summary, "MOST_REPORTED", 1)
    source = ledger.source("ward", IDS)
    for name in ("first", "second"):
        asked.reserve(ledger, source, run=name)
    first, second = json.loads(run("show", folder, "--json").output)["runs"]
    assert first["reported"] is None
    assert second["reported"]["value"] < second["epsilon"]["value"] == first["epsilon"]["value"]
    assert "not asked" in run("show", folder).output


def test_a_run_without_privacy_has_no_losses_to_show(make: Any, asked: Any) -> None:
    """Its ε is infinite by whoever counts; and of a mixture Rényi DP knows nothing."""
    ledger = make(None)
    source = ledger.source("ward", IDS)
    ledger.release_without_privacy(source, run="open", plan=asked.PLAN)
    asked.reserve(ledger, source, run="examples", unit="example", most_examples=3)
    book = ledger.book
    assert charging.reported(book, [0], "open").value == math.inf
    mixed = charging.reported(book, [0], "examples")
    assert mixed == charging.spent(book, [0], "examples")
    assert mixed.accountant == "losses"


def test_show_while_the_client_works(ledger: Ledger, folder: Path, asked: Any) -> None:
    """No lock is in the way, and a line that is being written is not called torn."""
    asked.reserve(ledger, ledger.source("ward", IDS))
    with (folder / FILE).open("ab") as file:
        file.write(b'{"body":')
    result = run("show", folder)
    assert "torn" not in result.stderr
    assert "10 × q 0.01" in result.output
    run("verify", folder)


def test_show_says_where_a_line_is_torn(used: Path) -> None:
    """And shows the rest."""
    with (used / FILE).open("ab") as file:
        file.write(b'{"body":')
    assert "a torn line at the end is left out" in run("show", used).stderr
    with pytest.raises(StorageError, match="torn line"):
        run("verify", used)
    with pytest.raises(StorageError, match="torn line"):
        run("export", used, used.parent / "export.jsonl")


def test_show_of_an_empty_ledger(folder: Path) -> None:
    """Also without a cap."""
    run("create", folder, "--delta", 1e-5, "--units", 100)
    assert "no cap" in run("show", folder).output
    assert json.loads(run("show", folder, "--json").output)["left"] is None


def test_infinity_is_shown_as_what_it_is(make: Any, asked: Any) -> None:
    """In the table and in JSON, which has no number for it."""
    ledger = make(None)
    ledger.release_without_privacy(ledger.source("ward", IDS), run="open", plan=asked.PLAN)
    folder = ledger._store.folder
    ledger.close()
    assert "highest ε = ∞" in run("show", folder).output
    assert json.loads(run("show", folder, "--json").output)["highest"]["value"] == "infinite"


def test_verify_says_what_is_proved_and_what_is_not(used: Path) -> None:
    """Rows, key, lists, head; that the end may be missing is said."""
    with Ledger.open(used) as ledger:
        head, key = ledger.head(), ledger.book.opened.key
    shown = run("verify", used, "--key", key).output
    for word in (f"{head.rows} rows", key, f"head {head.digest}, epoch 0", "2 lists of units", "Not shown"):
        assert word in shown, word
    with pytest.raises(StorageError, match="the ledger of another key"):
        run("verify", used, "--key", "00" * 32)


def test_verify_checks_every_signature(used: Path) -> None:
    """Not the last one alone, as opening does."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        from wardround.client.ledger.chain import Chain

        real = Chain._is_signed
        patch.setattr(Chain, "_is_signed", lambda self, row, key: calls.append(row) or real(self, row, key))
        run("verify", used)
    with Ledger.open(used) as ledger:
        assert sorted(set(calls)) == list(range(ledger.head().rows))


def test_a_third_party_checks_an_export(used: Path, tmp_path: Path) -> None:
    """Rows word for word, without any unit's hash; altered, it is refused."""
    file = tmp_path / "export.jsonl"
    run("export", used, file)
    content = file.read_bytes()
    assert content == (used / FILE).read_bytes()
    for path in (used / FOLDER).iterdir():
        ids = read_list(used, path.stem).ids.tobytes()
        assert not any(ids[at : at + 16].hex().encode() in content for at in range(0, len(ids), 16))
    assert "rows, each bound to those before it" in run("verify", file).output
    with pytest.raises(ConfigError, match="is there already"):
        run("export", used, file)
    with pytest.raises(ConfigError, match="an export has no mirror"):
        run("verify", file, "--mirror", tmp_path)
    file.write_bytes(content.replace(b'"round":2', b'"round":7', 1))
    with pytest.raises(StorageError, match="row 3 of the ledger does not follow"):
        run("verify", file)
    file.write_bytes(content.partition(b"\n")[2])
    with pytest.raises(StorageError, match="row 0"):
        run("verify", file)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    """By each command that looks."""
    for arguments in (["show", tmp_path], ["verify", tmp_path], ["export", tmp_path, tmp_path / "x"]):
        with pytest.raises(StorageError, match="there is no "):
            run(*arguments)


def test_the_policy_of_a_ledger_is_what_was_asked_for(folder: Path, tmp_path: Path) -> None:
    """Made and amended on the command line; what is not named stays."""
    mirror = tmp_path / "mirror"
    run(
        "create",
        folder,
        "--epsilon",
        3,
        "--delta",
        1e-5,
        "--units",
        100,
        "--allow-release",
        "--mirror",
        mirror,
    )
    run("amend", folder, *SIGNED, "--epsilon", 4, "--mirror", mirror)
    run("verify", folder, "--mirror", mirror)
    with Ledger.open(folder, mirror=mirror) as ledger:
        policy = ledger.book.policy
    assert (policy.epsilon, policy.delta, policy.allow_release, policy.allow_after_release) == (
        4.0,
        1e-5,
        True,
        False,
    )
    with pytest.raises(ConfigError, match="budget policy"):
        run("amend", folder, *SIGNED, "--epsilon", -1)


def test_a_declaration_is_about_the_latest_list_of_that_name(used: Path, asked: Any) -> None:
    """Names repeat as lists grow; one that is not there is refused with the nearest."""
    with Ledger.open(used) as ledger:
        ledger.source("ward [a]", [*IDS, "new"])
    run("declare", used, "ward [a]", *SIGNED)
    with Ledger.open(used) as ledger:
        assert ledger.epsilon(ledger.source("who", ["new"])).value == 0
    assert "disjoint, Dr Test: the board decided" in run("show", used).output
    with pytest.raises(ConfigError, match=r"did you mean 'ward \[a\]'"):
        run("declare", used, "ward [b]", *SIGNED)


def test_repairs_on_the_command_line(used: Path, tmp_path: Path) -> None:
    """Mend, replay and write off do what the functions do."""
    whole = (used / FILE).read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(used, copy)
    (used / FILE).write_bytes(whole + b"{")
    run("mend", used, *SIGNED)
    assert len((used / FILE).read_bytes()) > len(whole)
    (used / FILE).write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 1])
    assert "1 rows were appended" in run("replay", used, copy).output
    assert (used / FILE).read_bytes() == whole
    run("write-off", used, *SIGNED, "--run", "lost run", "--run", "another")
    with Ledger.open(used) as ledger:
        assert ledger.book.left == {"run", "other run", "lost run", "another"}
    assert "(left)" in run("show", used).output


def test_a_refusal_is_a_message_and_an_exit_code(folder: Path, policy: BudgetPolicy) -> None:
    """Without torch, without a traceback: 1 where the files are at fault, 2 where the arguments are."""
    blocked = (
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'flwr', 'transformers', 'hydra'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\nfrom wardround.cli import main\nmain(sys.argv[1:])\n"
    )

    def asked(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-c", blocked, "ledger", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert asked("create", folder, "--epsilon", 3, "--delta", 1e-5, "--units", 0)[0] == 2
    Ledger.create(folder, policy, units=100).close()
    assert asked("show", folder)[0] == 0
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])
    code, shown = asked("verify", folder)
    assert (code, "remedy:" in shown) == (1, True)
