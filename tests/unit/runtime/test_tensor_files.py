"""Arrays come back as they went in, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wardround.core.errors import StorageError
from wardround.runtime.files import load_tensors, save_tensors

ARRAYS = {
    "float": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "moments": np.array([1e-300, -0.0, np.inf]),
    "int": np.array([-(2**63), 2**63 - 1], np.int64),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "big endian": np.arange(3, dtype=">f8"),
}


def test_round_trip(tmp_path: Path) -> None:
    """Values, types, shapes and metadata return bit for bit; the format is plain safetensors."""
    save_tensors(tmp_path / "x.safetensors", ARRAYS, {"round": "3", "ü": "ß"})
    arrays, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"round": "3", "ü": "ß"}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(arrays[name], array, strict=name != "big endian")
    assert set(load_file(tmp_path / "x.safetensors")) == set(ARRAYS)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Whichever byte of the file changes, it is refused: header, metadata and values."""
    path = tmp_path / "x"
    save_tensors(path, {"a": np.arange(4, dtype=np.float32)}, {"round": "3"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(broken)
        try:
            arrays, metadata = load_tensors(path)
        except StorageError:
            continue
        # white space that pads the header is the only thing without a meaning
        assert metadata == {"round": "3"}
        np.testing.assert_array_equal(arrays["a"], np.arange(4, dtype=np.float32))
        assert whole[place : place + 1] == b" "


def test_what_is_not_ours_or_not_whole_is_refused(tmp_path: Path) -> None:
    """Missing, cut, foreign, a folder: each a StorageError that names the path."""
    path = tmp_path / "x"
    save_tensors(path, {"a": np.arange(400.0)})
    whole = path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-8])
    (tmp_path / "short").write_bytes(whole[:5])
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    save_file({"a": np.zeros(2)}, tmp_path / "foreign")
    for name in ("cut", "short", "nothing", "folder", "foreign", "missing"):
        with pytest.raises(StorageError, match=name):
            load_tensors(tmp_path / name)


def test_reserved_keys_are_refused(tmp_path: Path) -> None:
    """A caller cannot forge the checksum."""
    with pytest.raises(StorageError, match="reserved"):
        save_tensors(tmp_path / "x", {"a": np.zeros(1)}, {"wardround.digest": "0"})
