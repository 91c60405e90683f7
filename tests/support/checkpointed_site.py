"""A site that keeps checkpoints, and that is killed at one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wardround.client.checkpoints import CheckpointFile, RoundPlace
from wardround.client.round import answer
from wardround.client.sealed_files import Owner, storage_key
from wardround.core.messages import Request
from wardround.privacy.secagg.hashing import digest
from wardround.training.checkpoint import Checkpoint


class Killed(BaseException):
    """The process has ended here."""


def file_in(folder: Path, *, every_s: float = 1e-9, run_id: str = "run") -> CheckpointFile:
    """As a new process makes it; a checkpoint after every step."""
    owner = Owner(run_id=run_id, plan=digest("plan"), site="ward")
    return CheckpointFile(folder / "kept", owner, storage_key(folder), every_s)


def keeping(server: Any, folder: Path, **options: Any) -> Any:
    """The same site, with checkpoints."""
    return replace(server, site=replace(server.site, checkpoints=file_in(folder, **options)))


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Whoever trains in here ends at the checkpoint of so many steps."""
    real = CheckpointFile.write

    def write(self: CheckpointFile, checkpoint: Checkpoint, place: RoundPlace) -> None:
        real(self, checkpoint, place)
        if checkpoint.done == step:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFile, "write", write)
        with pytest.raises(Killed):
            yield


def killed_after(monkeypatch: pytest.MonkeyPatch, step: int, server: Any, request: Request) -> None:
    """Let the site train so many steps, and end there."""
    with killed_at(monkeypatch, step):
        answer(request, server.site)


def left_by(server: Any, request: Request, folder: Path) -> Checkpoint:
    """The checkpoint that a site has left of a request's round."""
    assert request.broadcast is not None
    place = RoundPlace(request.round, request.broadcast.digest, "6", server.site.bench.layout)
    found = file_in(folder).load(place)
    assert found is not None
    return found
