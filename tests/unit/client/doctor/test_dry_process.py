"""What is read from a dry step's process, however it ended."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from wardround.client.doctor.dry_process import kind_of, read_tried
from wardround.client.doctor.dry_step import peak_bytes
from wardround.client.doctor.judge_plan import FoundModel, Measured, Tried
from wardround.client.doctor.probes_site import free_memory
from wardround.training.device_memory import out_of_memory

STEP = Measured(seconds=1, peak_bytes=2, device="cpu", rows=3, tokens=4, made_up=True, private=False)
FIRST = Tried(models=(FoundModel(path="a", state="plans"),))
WHOLE = FIRST.model_copy(update={"step": STEP})


def lines(*tried: Tried) -> bytes:
    """As the process writes them."""
    return b"".join(one.model_dump_json().encode() + b"\n" for one in tried)


def test_the_last_line_counts() -> None:
    """Of a process that ended well."""
    assert read_tried(lines(FIRST, WHOLE), 0, 600) == WHOLE


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, "memory runs out"),
        (None, "within 600 s"),
        (1, "exit code 1"),
        (-signal.SIGSEGV, "signal 11"),
    ],
)
def test_what_was_told_before_the_end_stands(code: int | None, words: str) -> None:
    """The models; a torn line is none, and there is no step."""
    torn = lines(FIRST, WHOLE)[:-5]
    found = read_tried(torn, code, 600)
    assert (found.models, found.step) == (FIRST.models, None)
    assert words in found.why
    assert found.remedy


def test_nothing_told_is_nothing_found() -> None:
    """Killed while it imported."""
    assert read_tried(b"", -signal.SIGKILL, 600).models == ()


def test_the_kind_of_an_error_is_told_and_none_of_its_words() -> None:
    """Whatever else stands on the error stream."""
    errors = b"a warning\nTraceback (most recent call last):\n  File x\nwardround.errors.DataError: secret\n"
    assert kind_of(errors) == "DataError"
    assert kind_of(b"secret: text") == ""
    assert kind_of(b"") == ""
    assert "DataError" in read_tried(b"", 1, 600, "DataError").why


def test_torch_says_that_memory_is_full_in_two_ways() -> None:
    """Another RuntimeError is a fault of ours, and passes as one."""
    import torch

    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.skipif(sys.platform != "linux", reason="as the kernel of Linux says it")
def test_the_peak_is_this_process_own() -> None:
    """What is allocated and written to shows."""
    before = peak_bytes()
    held = bytearray(b"\1") * (before // 2)
    assert peak_bytes() > before
    assert len(held) > 0


def test_free_memory_observes_a_containers_limit(tmp_path: Path) -> None:
    """The smaller one; nothing where the system does not say."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:   50 kB\n")
    assert free_memory(meminfo, tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(meminfo, tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("40960\n")
    (tmp_path / "memory.current").write_text("30720\n")
    assert free_memory(meminfo, tmp_path) == 10 * 1024
    assert free_memory(tmp_path / "none", tmp_path / "none") is None
