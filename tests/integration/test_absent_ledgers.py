"""A ledger that is not there is no site without a ledger; a new one begins with what was accepted before."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from federation import Federation
from offers import COUNTS, RUN, codes, node, offer, own_rows, require_nothing_granted, set_up

from wardround.client.accepted import RunFolders
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.reading import look
from wardround.client.ledger.summary import summarise
from wardround.client.ledger_making import make_ledger
from wardround.client.ledger_place import MARK
from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.plan_folder import SIGNED

PATIENTS = [f"basel{number}" for number in range(5)]
POLICY = {"epsilon": 50.0, "delta": 1e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Three sites' folders, and three plans: without privacy, with it, and one that holds some back."""
    federation = Federation.make(tmp_path_factory.mktemp("absent"), tiny_bert, COUNTS)
    federation.plan("plan")
    for name, fraction in {"private": 0.0, "scored": 0.4}.items():
        federation.plan(
            name, units=(5, 6), strategy={"weighting": "uniform"},
            privacy={"unit": "patient", "noise": "local", "sigma": 1.0, "delta": 1e-3},
            local={"epochs": 1, "batch_size": 2, "max_grad_norm": None},
            data=federation.data(validation_fraction=fraction),
        )  # fmt: skip
    return federation


def site_of(federation: Federation) -> Path:
    """Folder of basel."""
    return federation.practice.sites["basel"].path


def require_refused(federation: Federation) -> None:
    """A run without privacy is neither accepted nor written down anywhere."""
    answer = node(federation).answer(offer(federation, run_id=RUN.replace("0a", "0c")))
    assert codes(answer) == ("refused", ["storage"])
    assert RunFolders(site_of(federation) / "runs").accepted(RUN.replace("0a", "0c")) is None


def test_a_site_whose_ledger_is_gone_accepts_nothing_until_it_is_back(federation: Federation) -> None:
    """Its disk is not mounted, or the folder was renamed: the run would stand nowhere."""
    ledger = site_of(federation) / "ledger"
    Ledger.create(ledger, BudgetPolicy(epsilon=50.0, delta=1e-3, allow_release=True), units=5).close()
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    assert (site_of(federation) / MARK).stat().st_mode & 0o777 == 0o600
    ledger.rename(ledger.with_name("ledger.old"))
    require_refused(federation)
    with pytest.raises(StorageError, match="not where its settings have it"):
        node(federation).get((RUN, "basel"))
    ledger.mkdir()  # where it would be mounted
    require_refused(federation)
    ledger.rmdir()
    ledger.with_name("ledger.old").rename(ledger)
    run = RUN.replace("0a", "0c")
    assert codes(node(federation).answer(offer(federation, run_id=run))) == ("accepted", [])
    assert {line.run for line in summarise(look(ledger)[0]).runs} == {RUN, run}


@pytest.mark.parametrize("named", [{"ledger": "/mnt/hospital/ledger"}, {"ledger_mirror": "/mnt/mirror"}])
def test_a_ledger_that_the_settings_name_has_to_be_there(
    federation: Federation, named: dict[str, str]
) -> None:
    """Also where this site has not seen it yet."""
    set_up(federation, **named)
    require_refused(federation)


def test_a_site_beside_one_without_a_ledger_has_none_either(federation: Federation) -> None:
    """The settings name where theirs would lie."""
    other = federation.practice.sites["cork"].path.resolve()
    set_up(federation, ledger=str(other / "ledger"), beside=[str(other)])
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    (other / MARK).write_bytes(b"")
    require_refused(federation)


def test_a_new_ledger_begins_with_what_was_accepted_without_one(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under whatever policy, with those who were held back; a private run then grants them nothing."""
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    folder = site_of(federation) / "ledger"
    make_ledger(folder, POLICY, 5, None)
    told = capsys.readouterr().out
    assert f"run {RUN} was accepted here before, without differential privacy" in told
    assert "runs whose folders in runs/ are gone" in told
    assert (site_of(federation) / MARK).exists()
    size = (folder / "ledger.jsonl").stat().st_size
    assert node(federation).get((RUN, "basel")) is not None
    assert (folder / "ledger.jsonl").stat().st_size == size, "it stands there already"
    with Ledger.open(folder) as ledger:
        assert {ledger.epsilon(ledger.source(one, [one])).value for one in PATIENTS} == {math.inf}
    require_nothing_granted(federation)


def test_a_run_that_trained_privately_was_charged_to_another_ledger(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new one cannot know it, and says what to do."""
    folder = site_of(federation) / "ledger"
    make_ledger(folder, POLICY, 5, None)
    data = (federation.practice.folder / "private" / SIGNED).read_bytes()
    assert codes(node(federation).answer(offer(federation, plan=data))) == ("accepted", [])
    folder.rename(folder.with_name("lost"))
    capsys.readouterr()
    make_ledger(folder, POLICY, 5, None)
    told = capsys.readouterr().out
    assert f"{RUN} trained privately here" in told
    assert "write-off" in told


def test_whom_an_earlier_private_run_held_back_a_new_ledger_knows(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same patients as the ledger that is lost had: their scores have left."""
    folder = site_of(federation) / "ledger"
    with Ledger.create(folder, BudgetPolicy(**POLICY, allow_release=True), units=5):
        pass
    data = (federation.practice.folder / "scored" / SIGNED).read_bytes()
    assert codes(node(federation).answer(offer(federation, plan=data))) == ("accepted", [])

    def without_bound() -> set[str]:
        with Ledger.open(folder) as ledger:
            return {one for one in PATIENTS if ledger.epsilon(ledger.source(one, [one])).value == math.inf}

    held = without_bound()
    assert 0 < len(held) < len(PATIENTS)
    folder.rename(folder.with_name("lost"))
    capsys.readouterr()
    make_ledger(folder, POLICY, 5, None)
    assert f"without differential privacy for {len(held)} of the 5 patients" in capsys.readouterr().out
    assert without_bound() == held


def test_where_the_rows_cannot_be_read_there_is_no_new_ledger(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless somebody wants one without what was before, which is said."""
    rows = own_rows(federation, tmp_path)
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    rows.rename(tmp_path / "moved.jsonl")
    folder = site_of(federation) / "ledger"
    with pytest.raises(ConfigError, match="whose rows cannot be read now"):
        make_ledger(folder, POLICY, 5, None)
    assert not folder.exists()
    capsys.readouterr()
    make_ledger(folder, POLICY, 5, None, earlier=False)
    assert "Nothing is entered" in capsys.readouterr().out
    assert look(folder)[0].rows == 1


def test_a_ledger_elsewhere_is_told_whose_it_is(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And has the run under the consortium's prefix, as it would have from then on."""
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    make_ledger(tmp_path / "nobodys", POLICY, 5, None)
    assert "No site was named" in capsys.readouterr().out
    make_ledger(tmp_path / "shared", POLICY, 5, None, sites=[site_of(federation)])
    (line,) = summarise(look(tmp_path / "shared")[0]).runs
    assert line.run == f"{federation.practice.sites['basel'].fingerprint[:16]}/{RUN}"


def test_what_cannot_be_entered_leaves_no_ledger(tmp_path: Path) -> None:
    """It is there with its first rows, or not at all."""

    def fails(_: Ledger) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        Ledger.create(tmp_path / "new", BudgetPolicy(epsilon=1.0, delta=1e-3), units=5, first=fails)
    assert not list(tmp_path.iterdir())
