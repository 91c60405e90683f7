"""Files appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from wardround.core.errors import StorageError


@contextmanager
def staging(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`; it is gone afterwards, whatever happens.

    Raises:
        StorageError: Something could not be written (a full disk, no permission); nothing is left.
    """
    temporary: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        yield temporary
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write {place}",
            found=f"{type(error).__name__}: {error}",
            expected="a writable folder with room for the model",
            remedy="free some space or choose another folder; nothing was left there",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(staged: Path, place: Path) -> None:
    """Flush a staged folder and rename it to `place`, which is absent or an empty folder."""
    for path in sorted(staged.rglob("*")):
        flush(path)
    flush(staged)
    staged.chmod(0o755)
    staged.replace(place)
    flush(place.parent)


def publish_files(staged: Path, place: Path, names: Iterable[str]) -> None:
    """Flush the named files and rename each into the folder `place`, in this order."""
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        flush(staged / name)
        (staged / name).replace(place / name)
    flush(place)


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
