"""Opening what a source reads: plain or gzipped, with errors that say what to do."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from wardround.core.errors import DataError

Binary: TypeAlias = io.BufferedReader | gzip.GzipFile

_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_MAGIC = {
    b"PK\x03\x04": "a zip archive (or an Excel sheet)",
    b"PAR1": "a Parquet file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"(\xb5/\xfd": "a zstd file",
    codecs.BOM_UTF16_LE: "UTF-16 text",
    codecs.BOM_UTF16_BE: "UTF-16 text",
}


@contextmanager
def open_binary(path: Path) -> Iterator[Binary]:
    """Open a file, through gzip where its first bytes say so; reading errors come out as DataError.

    Raises:
        DataError: Missing, a folder, not readable, or a damaged gzip file (also while it is being read).
    """
    _require_file(path)
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not zipped:
                if path.name.lower().endswith(".gz"):
                    raise gzip.BadGzipFile("not a gzipped file")  # noqa: TRY301 - one place words the error
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unzipped:
                yield unzipped
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be unzipped",
            found=f"{type(error).__name__}: {error}",
            expected="a whole gzip file",
            remedy="copy it again, or unzip it and drop the ending .gz",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read",
            found=f"{type(error).__name__}: {error.strerror}",
            remedy="check the path and its permissions",
        ) from error


@contextmanager
def open_text(path: Path, encoding: str, *, newline: str) -> Iterator[IO[str]]:
    """Open a text file; bytes outside the encoding become lone surrogates, which `is_text` finds.

    Args:
        path: File, gzipped or not.
        encoding: Name of a text encoding; `utf-8` drops a byte order mark.
        newline: As for `io.TextIOWrapper`: what ends a line.

    Raises:
        DataError: As `open_binary`; an unknown encoding; a binary file of a known kind.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise DataError(
            f"unknown text encoding {encoding!r}", expected="such as utf-8, latin-1 or cp1252"
        ) from error
    with open_binary(path) as binary:
        start = binary.peek(8)
        for magic, what in _OTHER_MAGIC.items():
            if start.startswith(magic) and not name.startswith("utf-16"):
                raise DataError(
                    f"{path} is not a text file in {encoding}",
                    found=what,
                    remedy="save it as UTF-8 text, or name its kind or encoding",
                )
        wrapper = io.TextIOWrapper(
            binary, "utf-8-sig" if name == "utf-8" else name, errors="surrogateescape", newline=newline
        )
        try:
            yield wrapper
        except UnicodeError as error:
            raise DataError(f"{path} is not text in {encoding}", remedy="name its encoding") from error
        finally:
            wrapper.detach()


def is_text(text: str) -> bool:
    """Whether a string could be written as UTF-8 again; lone surrogates cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def present(value: object) -> object:
    """The value, or None for a NaN: tables write a missing number so."""
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - only NaN differs from itself


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(
            f"{path} is a folder",
            expected="a file",
            remedy="name the file, or set kind: datasets for a saved folder",
        )
    raise DataError(f"there is no file {path}", remedy="correct the source's path")
