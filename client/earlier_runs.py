"""Runs that a site accepted before it had a privacy ledger: a new one begins with them.

A ledger that is made knows nobody, and would grant everybody a whole budget, also those whose data a run
without differential privacy had before. What a site's folder still has of that is entered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.charges import enter_contents
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger_place import owner_in
from wardround.client.membership.site_folder import ABOUT, SiteFolder, open_site_folder
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import ConfigError, UnreadyError
from wardround.core.plan import TrainingPlan
from wardround.runtime.signed_plan import read_signed_plan

if TYPE_CHECKING:  # it imports torch
    from wardround.client.local_data import UnitsOfRows


@dataclass(frozen=True)
class EarlierRun:
    """A run that protected no patient, or not those whom it held back.

    Attributes:
        run: Its id, as the ledger has it.
        plan: Digest of its plan, in hex.
        name: Of the plan.
        units: Whose rows it would get of the source as it is now, sorted.
        released: Of them, those whom it did not protect.
        contents: By unit, what its rows say.
    """

    run: str
    plan: str
    name: str
    units: tuple[str, ...]
    released: tuple[str, ...]
    contents: dict[str, str]


@dataclass(frozen=True)
class Earlier:
    """What the folders of a hospital's sites have of earlier runs.

    Attributes:
        runs: That did not protect all of their patients.
        private: Ids of runs that trained privately: another ledger was charged for them.
    """

    runs: tuple[EarlierRun, ...]
    private: tuple[str, ...]

    def enter(self, ledger: Ledger) -> None:
        """Write them down: nothing bounds their patients any more.

        Raises:
            PolicyError: δ is not below 1/units for as many patients as the ledger would know.
            StorageError: It cannot be written.
        """
        for found in self.runs:
            enter_contents(ledger, found.name, found.units, found.contents)
            source = ledger.source(found.name, found.released)  # by ids alone, as a site charges them
            ledger.release_without_privacy(source, run=found.run, plan=found.plan, happened=True)


def sites_of(ledger: Path, named: Sequence[Path]) -> tuple[SiteFolder, ...]:
    """The sites whose ledger this is to be: those that are named, else that in whose folder it is to lie.

    And those beside them, as their settings say.

    Raises:
        ConfigError: Settings cannot be read.
        StorageError: A folder is no site's.
    """
    around = ledger.absolute().parent
    first = [*named] or [folder for folder in (around,) if (folder / ABOUT).exists()]
    found: dict[Path, SiteFolder] = {}
    for folder in first:
        site = open_site_folder(folder)
        found[folder.resolve()] = site
        if (folder / FILE).exists():
            for beside in read_site_settings(folder / FILE).beside:
                found.setdefault(Path(beside).resolve(), open_site_folder(Path(beside)))
    return tuple(found.values())


def earlier_runs(ledger: Path, sites: Sequence[SiteFolder]) -> Earlier:
    """What these sites accepted before.

    Args:
        ledger: Folder that it is to have.
        sites: As `sites_of`.

    Raises:
        ConfigError: The rows of a run cannot be read as they are now.
        PeerError: A plan is not signed by the site's consortium any more.
        StorageError: Something cannot be read.
    """
    runs, private = list[EarlierRun](), list[str]()
    for site in sites:
        folders = RunFolders(site.path / RUNS)
        for run_id in folders.runs():
            signed = folders.plan(run_id)
            if folders.accepted(run_id) is None or signed is None:
                continue
            plan = read_signed_plan(signed, site.consortium_key).plan
            run = owner_in(ledger.absolute(), site) + run_id
            if plan.privacy is not None and plan.privacy.trains_privately:
                private.append(run)
            if plan.bounds_patients and not plan.data.validation_fraction:
                continue
            rows = _units(site, run_id, plan)
            released, name = rows.everybody, plan.name[:200]
            if plan.bounds_patients:
                released, name = rows.held_back, f"{name} (held back)"
            if released:
                runs.append(EarlierRun(run, plan.digest, name, rows.everybody, released, rows.contents))
    return Earlier(tuple(runs), tuple(private))


def _units(site: SiteFolder, run_id: str, plan: TrainingPlan) -> UnitsOfRows:
    from wardround.client.local_data import units_of  # torch, where there was a run

    try:
        return units_of(read_site_settings(site.path / FILE), plan, site.name)
    except UnreadyError as error:
        raise ConfigError(
            f"{site.name} accepted run {run_id}, which did not protect all of its patients, and whose rows "
            "cannot be read now",
            found=error.what,
            expected="the rows that it had, whose patients have to stand in the ledger",
            remedy="put them back in site.yaml for the time being; where they are gone, --without-earlier "
            "makes the ledger without them: it then grants their patients a budget that they no longer have",
        ) from error
