"""How simulators.py runs a contender: in processes of its own, with its times and its memory noted."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

from _network import SUBREAPER, tail
from _simulators_case import Case
from _simulators_environments import CACHE, python_of

CORES = os.cpu_count() or 1
HERE = Path(__file__).parent
QUIET = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
LOOK_S = 0.1
PAUSE_S = 0.01
LOOKS = 1000
"""After which a process that cannot be ended is left alone."""
SHARE = 0.01
"""Of one core that adding up memory may take: who has many processes would be slowed down otherwise."""
JOURNAL = "arms/federated/journal"


@dataclass(frozen=True)
class Contender:
    """Who does the work.

    Attributes:
        name: In the table.
        script: Of this folder, or empty where it is `wardround simulate`.
        arguments: Of the script after WORK and OUT, or settings.
        peer: Key of `_simulators_environments.PACKAGES`, or empty: our own environment.
        threads: Of each process; None: torch's choice.
        launcher: Before the script, after the interpreter.
        rounded: Products in bfloat16: the adapter is another, its loss has to be near.
    """

    name: str
    script: str = ""
    arguments: tuple[str, ...] = ()
    peer: str = ""
    threads: int | None = 1
    launcher: tuple[str, ...] = ()
    rounded: bool = False

    def command(self, case: Case, work: Path, out: Path, environments: Environments) -> list[str]:
        """What is run."""
        if not self.script:
            settings = [*case.settings(work), *self.arguments, f"output={out}/run"]
            return [sys.executable, "-P", "-m", "wardround.cli", "simulate", *settings]
        python = environments.python(self.peer) if self.peer else sys.executable
        return [python, *self.launcher, str(HERE / self.script), str(work), str(out), *self.arguments]

    def environment(self) -> dict[str, str]:
        """Its variables."""
        given = {name: value for name, value in os.environ.items() if name not in THREADS}
        if self.peer:
            given["PYTHONPATH"] = str(HERE)  # it knows nothing of Wardround
        threads = {} if self.threads is None else dict.fromkeys(THREADS, str(self.threads))
        path = os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", "")])
        return given | QUIET | threads | {"PATH": path}


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
RAY = ("simulation.backend=ray",)
TOGETHER = ("simulation.together=auto",)
BF16 = ("machine.precision=bf16",)
PLAIN = "_simulators_plain.py"
TWO = ("--processes", str(CORES), "--threads", "1")
CONTENDERS = {
    "bare": Contender(f"bare loop, fp32, {CORES} threads", PLAIN, threads=None),
    "bare_processes": Contender(f"bare loop, fp32, {CORES} processes", PLAIN, TWO),
    "bare_bf16": Contender(
        f"bare loop, bf16 weights + autocast, {CORES} threads", PLAIN, ("--bf16",), threads=None, rounded=True
    ),
    "bare_bf16_processes": Contender(
        f"bare loop, bf16 weights + autocast, {CORES} processes", PLAIN, (*TWO, "--bf16"), rounded=True
    ),
    "flower": Contender(f"Flower, Ray engine, {CORES} actors", "_simulators_flower.py", (str(CORES),)),
    "pfl": Contender(
        f"pfl-research 0.6.0, {CORES} processes", "_simulators_pfl.py", peer="pfl",
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(CORES)),
    ),
    "nvflare": Contender(
        f"NVFlare 2.9.0, simulator, {CORES} threads", "_simulators_nvflare.py", (str(CORES),), peer="nvflare"
    ),
    "ours": Contender("Wardround, as it comes", arguments=TOGETHER, threads=None),
    "ours_together": Contender(
        "Wardround, as it comes, bf16", arguments=(*TOGETHER, *BF16), threads=None, rounded=True
    ),
    "ours_alone": Contender("Wardround, one site at a time", threads=None),
    "ours_bf16": Contender("Wardround, one site at a time, bf16", arguments=BF16, threads=None, rounded=True),
    "ours_padded": Contender(
        "Wardround, padded", arguments=(*TOGETHER, "machine.padding_free=false"), threads=None
    ),
    "ours_inline": Contender(
        f"Wardround, this process, {CORES} threads", arguments=(*TOGETHER, "simulation.backend=inline"),
        threads=None,
    ),
    "ours_ray": Contender(f"Wardround, {CORES} Ray workers", arguments=(*TOGETHER, *RAY)),
}  # fmt: skip


@dataclass(frozen=True)
class Environments:
    """Where the peers' environments are."""

    folder: Path = CACHE
    shared: bool = False

    def python(self, peer: str) -> str:
        """The interpreter of one."""
        return str(python_of(peer, self.folder, shared=self.shared))


@dataclass(frozen=True)
class Ran:
    """How a contender did.

    Attributes:
        whole_s: From its start to its end.
        start_s: From its start to the beginning of the first round.
        rounds_s: Of each round.
        peak_bytes: Most memory of all its processes together: each one's own, and its part of what is shared.
        adapters: Round → file.
    """

    whole_s: float
    start_s: float
    rounds_s: list[float]
    peak_bytes: int
    adapters: dict[int, Path] = field(default_factory=dict)


def processes(root: int) -> list[int]:
    """All below one, itself among them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def memory(root: int) -> int:
    """Bytes of all processes below one, without itself: of pages that several share each counts its part."""
    total = 0
    for pid in processes(root)[1:]:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


class Sampling:
    """Looks at the memory of everything below this process, as often as costs next to nothing.

    Attributes:
        peak_bytes: The most that was seen.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        pause = LOOK_S
        while not self._done.wait(pause):
            began = time.thread_time()
            self.peak_bytes = max(self.peak_bytes, memory(os.getpid()))
            pause = max(LOOK_S, (time.thread_time() - began) / SHARE)


def run(
    contender: Contender, case: Case, work: Path, out: Path, environments: Environments, patience_s: float
) -> Ran:
    """Run a contender to its end.

    Raises:
        RuntimeError: It failed, or took too long; with the end of its log.
    """
    out.mkdir(parents=True)
    log = out / "log.txt"
    command = contender.command(case, work, out, environments)
    kept = Keeping(out) if not contender.script else None
    with Sampling() as sampling, log.open("wb") as output:
        began = time.time()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=contender.environment(),
            cwd=out, start_new_session=True,
        )  # fmt: skip
        try:
            if kept is not None:
                kept.begin()
            code = child.wait(patience_s)
            ended = time.time()
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{contender.name} took over {patience_s:.0f} s\n{tail(log)}") from None
        finally:
            end_all(child)
            if kept is not None:
                kept.end()
    if code:
        raise RuntimeError(f"{contender.name} has failed\n{tail(log)}")
    marks = marks_of_run(out) if kept is not None else marks_of(out)
    if len(marks) != case.rounds + 1:
        raise RuntimeError(f"{contender.name} told of {len(marks) - 1} rounds\n{tail(log)}")
    kind = "adapter" if contender.script else "state"
    found = {n: out / f"{kind}-{n}.safetensors" for n in range(1, case.rounds + 1)}
    return Ran(
        ended - began, marks[0] - began, [b - a for a, b in pairwise(marks)],
        sampling.peak_bytes,
        {n: path for n, path in found.items() if path.exists()},
    )  # fmt: skip


def end_all(child: subprocess.Popen[bytes]) -> None:
    """End what a contender has left behind: all below this process, which runs one contender at a time.

    A process that is killed is gone only a moment later, and its own children become ours then.
    """
    for _ in range(LOOKS):
        left = processes(os.getpid())[1:]
        if not left:
            break
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        child.wait()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(PAUSE_S)


def marks_of(out: Path) -> list[float]:
    """When the first round began, and when each ended."""
    path = out / "marks.jsonl"
    return [json.loads(line)["time_s"] for line in path.read_text().splitlines()] if path.exists() else []


def marks_of_run(out: Path) -> list[float]:
    """The same of `wardround simulate`, from its own events."""
    found: list[float] = []
    for line in (out / "run" / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "RoundFolded" or (event["event"] == "RoundStarted" and not found):
            found.append(event["time_s"])
    return found


class Keeping:
    """Takes hold of the state of each round in a run's journal, which keeps the last ones alone."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        """Watch."""
        self._thread.start()

    def end(self) -> None:
        """Look a last time."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        for path in (self._out / "run" / JOURNAL).glob("state-*.safetensors"):
            round = int(path.stem.removeprefix("state-"))
            with contextlib.suppress(OSError):  # it is there already, or has gone since
                os.link(path, self._out / f"state-{round}.safetensors")
