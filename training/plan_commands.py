"""`wardround plan check` and `wardround plan sign`: a plan's folder, judged and signed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError, PeerError, WardroundError
from wardround.runtime.files import write_atomic
from wardround.runtime.passphrases import given_passphrase
from wardround.runtime.plan_folder import PLAN, SIGNED, read_bytes, read_initial, read_plan
from wardround.runtime.signed import claimed_signer
from wardround.runtime.signed_plan import KIND, LARGEST_PLAN, read_signed_plan, sign_plan
from wardround.runtime.small_files import is_encrypted, read_identity
from wardround.training.plan_check import option_faults, plan_faults
from wardround.training.plan_summary import summary_of, summary_text

CONSORTIUM_KEY: Final = "consortium.key"
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CheckedPlan:
    """What a look at a plan's folder found.

    Attributes:
        problems: Everything for which it is refused; none: it is sound.
        document: The plan, where it could be read.
        signer: Public key in hex of whoever signed it, where somebody did and the signature holds.
    """

    problems: tuple[WardroundError, ...]
    document: SignedPlan | None = None
    signer: str | None = None


def check_folder(folder: Path, *, sites: int | None = None, key: str | None = None) -> CheckedPlan:
    """Everything for which a plan's folder is refused.

    Args:
        folder: Of the plan.
        sites: Expected to take part; None: the least number that the plan waits for.
        key: Consortium's public key in hex, for which a signature has to hold; None: the one that the
            signature names, for a person to compare.
    """
    try:
        document = read_plan(folder)
    except WardroundError as error:
        return CheckedPlan((error,))
    problems = list(plan_faults(document, () if sites is None else (sites,)))
    if not problems:
        problems += option_faults(document.plan)
    signer = None
    try:
        read_initial(folder, document.plan)
    except WardroundError as error:
        problems.append(error)
    try:
        signer = _signer(folder, document, key)
    except WardroundError as error:
        problems.append(error)
    return CheckedPlan(tuple(problems), document, signer)


def _signer(folder: Path, document: SignedPlan, key: str | None) -> str | None:
    """Who signed what lies in the folder; None: nobody, and nobody had to."""
    path = folder / SIGNED
    if key is not None and not _KEY.fullmatch(key):
        raise ConfigError("this is no public key", expected="64 digits in lower case hexadecimal")
    if not path.exists():
        if key is not None:
            raise PeerError(f"nobody has signed this plan: {path} is not there")
        return None
    data = read_bytes(path)
    signer = claimed_signer(data, KIND, largest=LARGEST_PLAN) if key is None else bytes.fromhex(key)
    signed = read_signed_plan(data, signer)
    if signed.digest != document.digest:
        raise ConfigError(
            f"{PLAN} was changed after it was signed", found=f"digest {document.digest}",
            expected=f"digest {signed.digest}, which was signed",
            remedy=f"restore {PLAN} from a copy, or make and sign a new plan in another folder",
        )  # fmt: skip
    return signer.hex()


def show_check(folder: Path, *, sites: int | None, key: str | None, as_json: bool) -> bool:
    """Print what `check_folder` finds.

    Returns:
        Whether the plan is sound.
    """
    found = check_folder(folder, sites=sites, key=key)
    sound, console = not found.problems, Console()
    summary: dict[str, Any] | None = None
    if sound and found.document is not None:
        summary = summary_of(found.document, sites or found.document.enrolment.least_sites)
    if as_json:
        record = {
            "ok": sound,
            "problems": [_record(error) for error in found.problems],
            "signer": found.signer,
            "summary": summary,
        }
        print(json.dumps(record, ensure_ascii=False, indent=2))  # noqa: T201 - for scripts
        return sound
    lines = [summary_text(summary)] if summary is not None else []
    lines += [f"refused: {error}" for error in found.problems]
    if sound:
        signed = f"signed by {found.signer}" if found.signer else "not signed yet"
        lines.append(f"The plan is sound, {signed}.")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return sound


def _record(error: WardroundError) -> dict[str, str | None]:
    return {"what": error.what, "found": error.found, "expected": error.expected, "remedy": error.remedy}


def sign_folder(folder: Path, consortium: Path) -> Path:
    """Sign a plan with the key in the operator's folder; a second time it is left as it is.

    Returns:
        The file that was written.

    Raises:
        StorageError: The key or the plan cannot be read, or the signature not written.
        ConfigError: The key is encrypted, and its passphrase missing or wrong.
        WardroundError: The first thing for which the plan is refused; it is then not signed.
    """
    path = consortium / CONSORTIUM_KEY
    key = read_identity(path, given_passphrase("the consortium") if is_encrypted(path) else None)
    checked, target = check_folder(folder), folder / SIGNED
    for problem in checked.problems:
        raise problem
    document = checked.document
    if document is None:
        raise ConfigError("there is no plan to sign", found=str(folder))
    signer = _public(key)
    if checked.signer is not None and checked.signer != signer:
        raise ConfigError(
            "the plan is signed already, with another key", found=f"key {checked.signer}",
            expected=f"key {signer}", remedy=f"remove {target} where that was a mistake, then sign again",
        )  # fmt: skip
    if checked.signer is None:
        write_atomic(target, sign_plan(document, key))
    Console().print(
        f"Signed plan {document.digest} with the consortium's key {signer}: {target}",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return target


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()
