"""The generated code is what the .proto files give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from control_protos import PROTOS, main, stale


def test_the_generated_code_is_in_step() -> None:
    """As `make check` asks: nothing changed, missing or left over."""
    assert stale() == []


def test_code_that_is_out_of_step_is_named(tmp_path: Path) -> None:
    """A changed message, a file that was edited by hand, one that is left over, one that is missing."""
    folder = tmp_path / "protos"
    shutil.copytree(PROTOS, folder)
    proto = folder / "contact.proto"
    proto.write_text(proto.read_text().replace("string version = 2;", "string version = 4;", 1))
    (folder / "old_pb2.py").write_text("# left over\n")
    assert stale(folder) == ["contact_pb2.py", "old_pb2.py"]
    shutil.copy(PROTOS / "contact.proto", proto)
    (folder / "contact_pb2.pyi").unlink()
    assert stale(folder) == ["contact_pb2.pyi", "old_pb2.py"]


def test_a_fault_in_a_proto_file_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Protoc says which; nothing is written."""
    (tmp_path / "broken.proto").write_text('syntax = "proto3"; message {')
    with pytest.raises(RuntimeError, match="protoc"):
        stale(tmp_path)
    assert "broken.proto" in capfd.readouterr().err


def test_the_check_ends_with_0_where_all_is_in_step() -> None:
    """And 1 otherwise, which make takes for a failure."""
    assert main(["--check"]) == 0
