"""A plan as a site's people name it: a run that was offered, a plan's folder, or the signed file."""

from __future__ import annotations

from pathlib import Path

from wardround.client.accepted import RUN_ID, RUNS, RunFolders
from wardround.client.membership.site_folder import SiteFolder
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError
from wardround.runtime.plan_folder import SIGNED, read_bytes
from wardround.runtime.signed_plan import read_signed_plan
from wardround.training.plan_check import plan_faults


def named_plan(site: SiteFolder, name: str) -> SignedPlan:
    """The plan, under the consortium's signature, and sound.

    Args:
        site: Whose consortium has to have signed it.
        name: Id of a run that was offered, a folder with `plan.signed.json`, or that file.

    Raises:
        ConfigError: There is no such thing, or the plan is not sound.
        PeerError: The consortium did not sign it.
        StorageError: It cannot be read.
    """
    signed = read_signed_plan(_bytes(site, name), site.consortium_key)
    for fault in plan_faults(signed):
        raise ConfigError(
            f"the plan cannot be run: {fault.what}", found=fault.found, expected=fault.expected,
            remedy="ask the operator for a plan that `wardround plan check` lets through",
        )  # fmt: skip
    return signed


def _bytes(site: SiteFolder, name: str) -> bytes:
    runs, path = RunFolders(site.path / RUNS), Path(name)
    if RUN_ID.fullmatch(name) and (offered := runs.plan(name)) is not None:
        return offered
    if path.is_file():
        return read_bytes(path)
    if (path / SIGNED).is_file():
        return read_bytes(path / SIGNED)
    raise ConfigError(
        "there is no such plan", found=name,
        expected=f"a run that was offered ({', '.join(runs.runs()) or 'none was'}), a folder with {SIGNED}, "
        "or that file", remedy="wardround site status lists the runs",
    )  # fmt: skip
