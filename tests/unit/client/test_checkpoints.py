"""A site that is killed in the middle of a local round goes on there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpointed_site import file_in, keeping, killed_after, left_by

from wardround.client import sealed_files
from wardround.client.checkpoints import CheckpointFile, RoundPlace
from wardround.client.round import answer
from wardround.client.sealed_files import storage_key
from wardround.core.errors import StorageError
from wardround.privacy.sums.contract import EVALUATION, TRAINING

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("state", "strategy"), [("reset", "fedavg"), ("keep", "fedavg"), ("reset", "scaffold")]
)
def test_a_killed_site_goes_on_and_contributes_what_it_would_have(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], state: str, strategy: str
) -> None:
    """The same request in a new process: two of three steps are not taken again, and no bit differs."""
    make = partial(make, optimiser_state=state, steps=3, strategy=strategy)
    plain = make()
    request = plain.request(sums=(TRAINING,))
    expected = plain.read(request, answer(request, plain.site), TRAINING)[0]
    server = keeping(make(), tmp_path)
    killed_after(monkeypatch, 2, server, server.request(sums=(TRAINING,)))
    steps.clear()
    again = keeping(make(), tmp_path)
    request = again.request(sums=(TRAINING,))
    reply = answer(request, again.site)
    assert reply.status == "ok", reply.reason
    np.testing.assert_array_equal(again.read(request, reply, TRAINING)[0], expected)
    assert len(steps) == 1
    assert file_in(tmp_path)._file.read() is None  # what is sent is kept, and the checkpoint destroyed


def test_no_offer_is_answered_before_the_training_is_done(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same request would be none that a site answers twice: its scores were offered for."""
    server = keeping(make(steps=3, mode="real", least_cohort=3), tmp_path)
    request = server.request()
    assert set(request.sums) == {TRAINING, EVALUATION}
    killed_after(monkeypatch, 2, server, request)
    fresh = keeping(server, tmp_path)  # its records are in memory here, and have survived
    reply = answer(request, fresh.site)
    assert (reply.status, set(reply.sums)) == ("ok", {TRAINING, EVALUATION}), reply.reason


def test_what_a_checkpoint_holds_cannot_be_read_without_the_key(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No run of the adapter's bytes is in the file; under another key the round begins anew."""
    server = keeping(make(steps=3), tmp_path)
    request = server.request(sums=(TRAINING,))
    killed_after(monkeypatch, 2, server, request)
    found = left_by(server, request, tmp_path)
    assert (found.done, found.of) == (2, 3)
    content = (tmp_path / "kept" / "checkpoint.sealed").read_bytes()
    vector = found.adapter.vector
    moved = np.flatnonzero(vector != server.initial.vector)
    assert len(moved) > 100
    assert not any(vector[at : at + 4].tobytes() in content for at in moved[:100])
    other = replace(file_in(tmp_path), key=storage_key(tmp_path / "other"))
    place = RoundPlace(1, request.broadcast.digest, "6", server.site.bench.layout)
    with caplog.at_level(logging.WARNING):
        assert other.load(place) is None
    assert "begins anew" in caplog.text


def test_only_the_same_round_over_the_same_rows_goes_on(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another round, broadcast, number of rows or run, and damage: there is nothing to go on from."""
    server = keeping(make(steps=3), tmp_path)
    request = server.request(sums=(TRAINING,))
    killed_after(monkeypatch, 2, server, request)
    place = RoundPlace(1, request.broadcast.digest, "6", server.site.bench.layout)
    file = file_in(tmp_path)
    assert file.load(place) is not None
    others: list[dict[str, Any]] = [
        {"round": 2},
        {"broadcast": "00" * 32},
        {"rows": "5"},
        {"rows": "6 otherwise"},
    ]
    for changed in others:
        assert file.load(replace(place, **changed)) is None
    assert file_in(tmp_path, run_id="another").load(place) is None
    path = tmp_path / "kept" / "checkpoint.sealed"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert file.load(place) is None
    assert answer(request, server.site).status == "ok"


def test_a_checkpoint_goes_with_its_round(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the round went on without the site, the next one destroys it; another run's is left alone."""
    server = keeping(make(steps=3), tmp_path)
    killed_after(monkeypatch, 1, server, server.request(sums=(TRAINING,)))
    path = tmp_path / "kept" / "checkpoint.sealed"
    file_in(tmp_path, run_id="another").forget(round=9)
    file_in(tmp_path).forget(round=0)
    assert path.exists()
    monkeypatch.setattr(CheckpointFile, "write", lambda *_: None)
    again = keeping(server.restarted(), tmp_path)
    assert answer(again.request(2, sums=(EVALUATION,)), again.site).status == "ok"
    assert not path.exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_round(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and training goes on."""

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("cannot write", found="No space left on device")

    server = keeping(make(steps=3), tmp_path)
    monkeypatch.setattr(sealed_files.SealedFile, "write", full)
    with caplog.at_level(logging.WARNING):
        assert answer(server.request(sums=(TRAINING,)), server.site).status == "ok"
    assert "training goes on" in caplog.text


def test_none_is_written_before_it_is_time(make: Make, tmp_path: Path) -> None:
    """Short rounds write none at all."""
    server = keeping(make(steps=3), tmp_path, every_s=1000.0)
    assert answer(server.request(sums=(TRAINING,)), server.site).status == "ok"
    assert not (tmp_path / "kept").exists()
