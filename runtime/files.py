"""Durable files and checksummed tensors: the surface of `_durable.py` and `_tensor_files.py`."""

from wardround.runtime._durable import (
    PART,
    append_line,
    atomic_folder,
    erase_file,
    is_full,
    json_text,
    private_folder,
    storing,
    sync_folder,
    write_atomic,
    write_json,
)
from wardround.runtime._tensor_files import load_tensors, save_tensors

__all__ = [
    "PART",
    "append_line",
    "atomic_folder",
    "erase_file",
    "is_full",
    "json_text",
    "load_tensors",
    "private_folder",
    "save_tensors",
    "storing",
    "sync_folder",
    "write_atomic",
    "write_json",
]
