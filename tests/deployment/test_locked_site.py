"""A site whose keys are locked with a passphrase takes part as any other, and no child of it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from deployed import wait_for
from federation import Federation

from wardround.client.membership.locking import key_files, locked_files, relock
from wardround.client.supervisor import running_site
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.passphrases import VARIABLE, Lock, use_lock
from wardround.runtime.plan_folder import INITIAL, SIGNED
from wardround.server.daemon import running_server
from wardround.server.run_states import RunStatus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNTS = {"aachen": 12, "basel": 10, "cork": 14}
WORDS = "a dozen words or so"


@contextmanager
def started(folder: Path, words: str | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`wardround site start`, told a passphrase, without a terminal; ended with the block."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if words is not None:
        environment[VARIABLE] = words
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "wardround.cli", "site", "start", "--folder", str(folder)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def children(pid: int) -> list[int]:
    """Processes whose parent it is."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # by the thread that started them
    return sorted(int(found) for listed in lists for found in listed.read_text().split())


def shown(pid: int) -> bytes:
    """What the system shows of a process: its command line and its environment."""
    return b"".join((Path("/proc") / str(pid) / name).read_bytes() for name in ("cmdline", "environ"))


def test_a_locked_site_takes_part_and_tells_its_children_nothing(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> None:
    """Without the passphrase, or with another, it does not start and says so."""
    federation = Federation.make(tmp_path_factory.mktemp("l"), tiny_bert, COUNTS)
    site, log = federation.practice.sites["basel"], tmp_path_factory.mktemp("log") / "log"
    files = key_files(site, site.path / "ledger")
    assert relock(files, None, Secret(WORDS.encode())) == 3
    use_lock(Lock())
    for words, said in ((None, "is locked with a passphrase"), ("not this one at all", "does not open")):
        with started(site.path, words, log) as process:
            assert process.wait(60) == 2
        assert said in log.read_text()
    with ExitStack() as stack:
        server = stack.enter_context(running_server(federation.practice.server))
        for name in ("aachen", "cork"):
            stack.enter_context(running_site(federation.practice.sites[name].path))
        process = stack.enter_context(started(site.path, WORDS, log))
        plan = federation.plan("plan")
        run = server.desk.submit((plan / SIGNED).read_bytes(), [(plan / INITIAL).read_bytes()], "one").run_id
        wait_for(lambda: server.desk.run(run).record.status.ended, 300)
        assert server.desk.run(run).record.status == RunStatus.FINISHED
        found = children(process.pid)
        assert len(found) == 2
        for pid in found:
            assert WORDS.encode() not in shown(pid)
            assert VARIABLE.encode() not in shown(pid)
    made = key_files(site, site.path / "ledger")
    assert [path.name for path in made] == ["history.key", "identity.key", "storage.key", "transport.key"]
    assert locked_files(made) == made, "the history's key was made by a site that knew the passphrase"
    assert WORDS not in log.read_text()
    for file in (path for path in site.path.rglob("*") if path.is_file()):
        assert WORDS.encode() not in file.read_bytes(), file
