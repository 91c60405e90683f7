"""One privacy ledger for a hospital in several consortia: one account, and one count of runs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from members import Practice

from wardround.client import ledger_place
from wardround.client.charges import Charge
from wardround.client.keeper import own_keeper
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.row_file import BusyError
from wardround.client.ledger_place import LedgerPlace, share_ledger
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.site_settings import FILE, read_site_settings, write_site_starter
from wardround.core.errors import BudgetError, ConfigError, PolicyError, StorageError
from wardround.privacy.accounting.mechanisms import SampledGaussian

MECHANISM = SampledGaussian(sample_rate=0.5, sigma=2.0, steps=3)
PATIENTS = ("ann", "bob")


@pytest.fixture
def sites(tmp_path: Path) -> tuple[SiteFolder, SiteFolder, SiteFolder]:
    """The hospital's sites in three consortia; the second and third came later."""
    found = []
    for name in ("north", "south", "west"):
        (tmp_path / name).mkdir()
        practice = Practice(tmp_path / name).make()
        site = practice.member("aachen")
        practice.update("aachen")
        write_site_starter(site.path / FILE)
        found.append(site)
    first, second, third = found
    return first, second, third


def charge(run: str, plan: str = "a", round: int = 1, **changes: object) -> Charge:
    """Of a private round."""
    fields = {
        "source": "rows", "units": PATIENTS, "run": run, "plan": plan * 64, "round": round, "draw": "d",
        "mechanism": MECHANISM, "unit": "patient", "delta": 1e-3,
    }  # fmt: skip
    return Charge.model_validate(fields | changes)


def opened(site: SiteFolder, epsilon: float) -> None:
    """Make the site's ledger."""
    path = LedgerPlace.of(site).folder
    Ledger.create(path, BudgetPolicy(epsilon=epsilon, delta=1e-3, allow_release=False), units=2).close()


def test_a_site_alone_has_its_own(sites: tuple[SiteFolder, ...]) -> None:
    """In its folder, and runs stand in it by their id."""
    site = sites[0]
    assert LedgerPlace.of(site) == LedgerPlace(site.path.resolve() / "ledger")
    with pytest.raises(PolicyError, match="no privacy ledger"):
        own_keeper(site).charges()


def test_what_one_consortium_spends_the_other_cannot(sites: tuple[SiteFolder, ...]) -> None:
    """A patient's account is one: the round that would overdraw it is refused, whoever asks for it."""
    first, second, third = sites
    ledger = share_ledger(second.path, first.path)
    share_ledger(third.path, second.path)
    assert ledger == first.path.resolve() / "ledger"
    assert {LedgerPlace.of(site).folder for site in sites} == {ledger}
    opened(first, 4.0)
    north, south, west = (own_keeper(site).charges() for site in sites)
    alone = north.reserve(charge("run1"))
    assert south.reserve(charge("run1")) == pytest.approx(alone), "another run of another consortium"
    with pytest.raises(BudgetError):  # noqa: PT012 - one of them is the first too many
        for round in range(2, 50):
            west.reserve(charge("run1", round=round))
            north.reserve(charge("run1", round=round))
    with pytest.raises(BudgetError):
        south.reserve(charge("run2"))
    with Ledger.open(ledger) as found:
        assert found.epsilon(found.source("rows", PATIENTS)).value <= 4.0


def test_a_consortium_that_calls_its_run_as_anothers_gains_nothing(sites: tuple[SiteFolder, ...]) -> None:
    """Neither a round for free nor a hold on the other's: theirs are two runs, with two plans."""
    first, second, _ = sites
    share_ledger(second.path, first.path)
    opened(first, 100.0)
    north, south = own_keeper(first).charges(), own_keeper(second).charges()
    north.reserve(charge("run1"))
    north.seal("run1", 1, "e" * 64)
    south.reserve(charge("run1", plan="b"))
    south.seal("run1", 1, "f" * 64)
    with Ledger.open(LedgerPlace.of(first).folder) as ledger:
        owner = f"{second.fingerprint[:16]}/run1"
        assert ledger.sealed(run="run1", round=1, stage=0) == "e" * 64
        assert ledger.sealed(run=owner, round=1, stage=0) == "f" * 64


def test_a_ledger_in_use_is_waited_for(
    sites: tuple[SiteFolder, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as another site's round may take; then it is said."""
    first = sites[0]
    opened(first, 4.0)
    place = LedgerPlace.of(first)
    held = place.opened()
    threading.Timer(0.3, held.close).start()
    started = time.monotonic()
    place.opened().close()
    assert time.monotonic() - started >= 0.2
    monkeypatch.setattr(ledger_place, "PATIENCE_S", 0.2)
    held = place.opened()
    with pytest.raises(BusyError, match="another process has"):
        own_keeper(first).charges().reserve(charge("run1"))
    held.close()
    own_keeper(first).charges().reserve(charge("run1"))


def test_every_row_goes_to_the_second_place_and_a_restored_ledger_is_refused(
    sites: tuple[SiteFolder, ...], tmp_path: Path
) -> None:
    """Yesterday's backup has fewer rows than the mirror: nothing is charged before they are replayed."""
    site = sites[0]
    settings = site.path / FILE
    settings.write_text(settings.read_text().replace("ledger_mirror: null", "ledger_mirror: ../mirror"))
    opened(site, 8.0)
    charges, place = own_keeper(site).charges(), LedgerPlace.of(site)
    charges.reserve(charge("run1"))
    yesterday = {file.name: file.read_bytes() for file in place.folder.iterdir() if file.is_file()}
    charges.reserve(charge("run1", round=2))
    assert place.mirror is not None
    assert (place.mirror / "ledger.jsonl").read_bytes() == (place.folder / "ledger.jsonl").read_bytes()
    for name, content in yesterday.items():
        (place.folder / name).write_bytes(content)
    with pytest.raises(StorageError, match=r"(?i)mirror"):
        charges.reserve(charge("run1", round=3))
    assert (place.folder / "ledger.jsonl").read_bytes() == yesterday["ledger.jsonl"]


def test_each_counts_the_others_runs(sites: tuple[SiteFolder, ...]) -> None:
    """Settings name all of them, comments stay; a second time changes nothing."""
    first, second, third = sites
    share_ledger(second.path, first.path)
    share_ledger(third.path, first.path)
    paths = [str(site.path.resolve()) for site in sites]
    for number, site in enumerate(sites):
        found = read_site_settings(site.path / FILE)
        assert sorted(found.beside) == sorted(path for i, path in enumerate(paths) if i != number)
        assert "# Base models: folders with" in (site.path / FILE).read_text()
    before = [(site.path / FILE).read_bytes() for site in sites]
    share_ledger(third.path, first.path)
    assert [(site.path / FILE).read_bytes() for site in sites][:2] == before[:2]


def test_a_site_without_settings_shares_nothing(sites: tuple[SiteFolder, ...], tmp_path: Path) -> None:
    """And says which file it lacks."""
    (sites[0].path / FILE).unlink()
    with pytest.raises((ConfigError, StorageError), match=r"site\.yaml"):
        share_ledger(sites[1].path, sites[0].path)
    assert read_site_settings(sites[1].path / FILE).beside == ()
