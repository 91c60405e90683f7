"""A plan's folder: the plan, its signature, and the adapter that everybody starts from.

plan.json             the document, in its canonical form
plan.signed.json      the same under the consortium's signature, once it is signed
initial.safetensors   the initial adapter and head that the plan names by digest
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError, StorageError
from wardround.core.packed import Adapter, Layout, pack, require_finite
from wardround.core.plan import TrainingPlan
from wardround.runtime.files import atomic_folder, load_tensors, save_tensors, write_atomic
from wardround.runtime.signed_plan import LARGEST_PLAN

PLAN: Final = "plan.json"
SIGNED: Final = "plan.signed.json"
INITIAL: Final = "initial.safetensors"
MOST_COORDINATES: Final = 2**31
"""Of an adapter: 8 GB in float32, beyond what any message carries."""
MOST_TENSORS: Final = 2**16
_BYTES_A_TENSOR: Final = 4096
"""Room for a tensor's name, shape and place in the header of a safetensors file."""


def write_plan_folder(folder: Path, document: SignedPlan, initial: Adapter) -> None:
    """Make the folder as a whole, or none.

    Raises:
        StorageError: It is there already and holds something, or the disk failed.
        ConfigError: As `SignedPlan.canonical`.
    """
    text = document.canonical()
    with atomic_folder(folder) as making:
        save_tensors(making / INITIAL, initial.tensors(), {"plan_digest": document.plan.digest})
        write_atomic(making / PLAN, text + b"\n")


def read_plan(folder: Path) -> SignedPlan:
    """The document, if it lies there in its canonical form: nobody edited it by hand and left it ambiguous.

    Raises:
        StorageError: It is not there, or too large.
        ConfigError: Not such a document, or not in its canonical form.
    """
    data = read_bytes(folder / PLAN)
    document = SignedPlan.parse(data)
    if document.canonical() != data.removesuffix(b"\n"):
        raise ConfigError(
            f"{folder / PLAN} is not in the canonical form of its plan",
            found="another text for the same plan, or a value that stands in it twice or in another type",
            expected="sorted keys, no spaces, every setting once",
            remedy="make the plan anew with `wardround plan new`, which writes it so",
        )
    return document


def read_bytes(path: Path) -> bytes:
    """A file of a plan's folder, its size looked at first.

    Raises:
        StorageError: It is not there, cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_PLAN + 1)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}", found=error.strerror,
            remedy="name the folder of a plan; `wardround plan new FOLDER` makes one",
        ) from error  # fmt: skip
    if len(data) > LARGEST_PLAN:
        raise StorageError(f"{path} is too large", expected=f"at most {LARGEST_PLAN} bytes")
    return data


def check_layout(layout: Layout) -> None:
    """Refuse an adapter that no run could carry; nothing is allocated before.

    Raises:
        ConfigError: Too many tensors or coordinates, none, a dimension below 1, or a name that stands twice.
    """
    tensors = layout.tensors
    wrong = any(side < 1 for spec in tensors for side in spec.shape) or not tensors
    twice = len({spec.name for spec in tensors}) < len(tensors)
    if wrong or twice or len(tensors) > MOST_TENSORS or layout.size > MOST_COORDINATES:
        raise ConfigError(
            "the adapter's layout is not one that a run can carry",
            found=f"{len(tensors)} tensors" + (", one name twice" if twice else ""),
            expected=f"1 to {MOST_TENSORS} tensors of positive sides, {MOST_COORDINATES} coordinates at most",
        )


def read_initial(folder: Path, plan: TrainingPlan) -> Adapter:
    """The adapter that the plan's sites start from.

    Raises:
        StorageError: The file is not there, damaged, or too large for the plan's layout.
        ConfigError: The layout is none that a run can carry, or the adapter is another than the plan names.
        PeerError: It has other tensors than the plan's layout, or is not finite.
    """
    layout, path = plan.adapter.layout, folder / INITIAL
    check_layout(layout)
    most = 4 * layout.size + _BYTES_A_TENSOR * (len(layout.tensors) + 1)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(
            f"cannot read {path}", found=error.strerror, expected="the initial adapter"
        ) from error
    if size > most:
        raise StorageError(
            f"{path} is larger than the plan's adapter", found=f"{size} bytes", expected=f"at most {most}"
        )
    tensors, _ = load_tensors(path)
    adapter = pack(layout, tensors)
    if adapter.digest != plan.adapter.initial_digest:
        raise ConfigError(
            "the initial adapter is not the one that the plan names", found=adapter.digest,
            expected=plan.adapter.initial_digest,
            remedy=f"restore {INITIAL} from a copy, or make the plan anew",
        )  # fmt: skip
    require_finite(adapter, "the initial adapter")
    return adapter
