"""What the benchmarks of the network share: processes with what they cost, a tiny model, result lines."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from wardround.core.errors import WardroundError
from wardround.runtime.control.protos import run_control_pb2 as pb
from wardround.server.operator_client import connected

RESULTS = Path(__file__).parent / "results"
QUIET = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}  # fmt: skip
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl: what our processes leave behind stays below us, and is counted."""
SAMPLE_S = 0.5
STOP_S = 30.0
_SENTENCES = (
    "The patient is a 61 year old man with chest pain on exertion.",
    "What are the symptoms of diabetes? Thirst, hunger and tiredness are common.",
    "We measured the heart rate of all patients. The results were significant.",
)


def end_in_order() -> None:
    """SIGTERM ends the script as Ctrl-C does: no process of ours stays behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def wardround(*arguments: str) -> list[str]:
    """A command of ours, as a process."""
    return [sys.executable, "-P", "-m", "wardround.cli", *arguments]


@contextmanager
def process(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to end, and after a while killed, at the end of the block."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=os.environ | QUIET | {"PATH": path} | dict(environment or {}),
        )  # fmt: skip
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(
    condition: Callable[[], Any], seconds: float, needed: Sequence[subprocess.Popen[bytes]] = ()
) -> Any:
    """What the condition gives once it is true.

    Raises:
        RuntimeError: It was not in time, or a process that it needs has ended.
    """
    end = time.monotonic() + seconds
    while not (result := condition()):
        for child in needed:
            if child.poll() is not None:
                raise RuntimeError(f"{child.args!r} has ended: {child.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.1)
    return result


def listening(port: int) -> bool:
    """Whether somebody listens on this port of the loopback interface."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def takes_commands(server: Path) -> bool:
    """Whether the server of a folder of ours answers its operator."""
    try:
        with connected(server) as client:
            client.call("List", pb.ListRequest())
    except WardroundError:
        return False
    return True


def cpu_s(root: int) -> float:
    """CPU seconds of all processes below one, those that have ended among them."""
    parents: dict[int, int] = {root: 0}
    spent: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        pid = int(path.parent.name)
        # Of the root itself only what its ended children took: it is the one that measures.
        parents[pid] = int(fields[1])
        spent[pid] = sum(map(int, fields[13:15] if pid == root else fields[11:15]))

    def below(pid: int) -> bool:
        while pid > 1:
            if pid == root:
                return True
            pid = parents.get(pid, 0)
        return False

    return sum(ticks for pid, ticks in spent.items() if below(pid)) / os.sysconf("SC_CLK_TCK")


@dataclass
class Watch:
    """Samples CPU seconds in a thread of its own: by default of everything below this process."""

    measure: Callable[[], float] = field(default=lambda: cpu_s(os.getpid()))
    samples: list[tuple[float, float]] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.samples.append((time.time(), self.measure()))
            if self._done.wait(SAMPLE_S):
                return

    def between(self, begin_s: float, end_s: float) -> float:
        """CPU seconds between two moments of the clock, to within a sample."""
        times, spent = np.array(self.samples).T
        begun, ended = np.interp([begin_s, end_s], times, spent)
        return float(ended - begun)


def status_kib(pid: int, name: str) -> int:
    """A line of a process's status that is in kB, such as VmHWM: its peak resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no {name}")


def machine() -> dict[str, Any]:
    """Where and when; the load is that of the last minute before."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


def append(name: str, record: Mapping[str, Any]) -> None:
    """One more line of benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def tail(log: Path, characters: int = 3000) -> str:
    """The end of a log, where there is one."""
    return f"{log.name}: {log.read_text(errors='replace')[-characters:]}" if log.exists() else ""


def tiny_bert(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """An encoder of so many layers and units, made from a config, with a tokenizer that reads any text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }  # fmt: skip
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=list(specials.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    first, last = specials["cls_token"], specials["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )  # fmt: skip
    fast: Any = PreTrainedTokenizerFast
    loaded = fast(
        tokenizer_object=tokenizer, **specials, model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(loaded), hidden_size=hidden, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = BertModel(config)
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder
