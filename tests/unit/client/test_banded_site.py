"""A site whose noise is correlated over a run: reserved once, and no step of the run is released twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpointed_site import Killed, keeping, killed_at
from private_site import UNITS, seeded, system

from wardround.client import work
from wardround.client.noise_file import NOISE_FOLDER, NoiseFile, require_room
from wardround.client.round import answer
from wardround.client.sealed_files import Owner, storage_key
from wardround.core.errors import ConfigError, StorageError
from wardround.core.messages import SPENT
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.accounting.mechanisms import BandedGaussian
from wardround.privacy.noise.correlated import NoiseState
from wardround.privacy.noise.source import SystemSource
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.sums.contract import TRAINING
from wardround.training.private.blocks import BlockBatch, Pattern

RULES = PrivacyRules(unit="patient", epsilon=4.0, delta=1e-2, mechanism="banded")


@pytest.fixture
def banded(private: Callable[..., Any]) -> Callable[..., Any]:
    """A private site of four patients in two blocks; three rounds of three steps."""
    return partial(private, rules=RULES)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of the run that were taken, in order."""
    taken: list[int] = []
    plain = Pattern.require

    def noting(self: Pattern, batch: BlockBatch, step: int) -> None:
        plain(self, batch, step)
        taken.append(step)

    monkeypatch.setattr(Pattern, "require", noting)
    return taken


def asked(server: Any, round: int = 1, **changes: Any) -> Any:
    """The reply to a request for training."""
    return answer(server.request(round, sums=(TRAINING,), **changes), server.site)


def reservations(server: Any) -> dict[int, list[str]]:
    """Draws of every round that has some; round 0 is the whole run."""
    with server.site.privacy.charges.ledger() as ledger:
        found = {
            round: [charge.draw for charge in ledger.book.draws.of(("run", round, 0))] for round in range(4)
        }
        return {round: draws for round, draws in found.items() if draws}


def after(folder: Path) -> list[str]:
    """Files of noise."""
    return sorted(path.name for path in (folder / NOISE_FOLDER).iterdir())


def test_a_run_is_charged_once_and_whole_before_a_row_is_touched(
    banded: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """In its first round; the later ones find the reservation, and every round is sealed."""

    def dies(*_: Any, **__: Any) -> Any:
        raise Killed

    server = banded()
    with monkeypatch.context() as patched:
        patched.setattr(work, "train_locally", dies)
        with pytest.raises(Killed):
            asked(server)
    (draw,) = reservations(server)[0]
    assert after(tmp_path) == ["round-00000.safetensors"]  # begun before it was reserved
    server = banded()
    replies = [asked(server, round) for round in (1, 2, 3)]
    assert [reply.status for reply in replies] == ["ok"] * 3
    assert steps == list(range(9))
    assert reservations(server) == {0: [draw]}
    assert len({reply.local[SPENT] for reply in replies}) == 1
    cost = server.site.privacy.cost
    assert 3.9 < replies[0].local[SPENT] <= 4.0
    assert replies[0].local[SPENT] == cost.epsilon(1).value == cost.epsilon(3).value
    with server.site.privacy.charges.ledger() as ledger:
        (charge,) = ledger.book.draws.of(("run", 0, 0))
        assert charge.terms.mechanism == BandedGaussian(sigma=cost.sigma, bands=2, steps=9)
        assert [round for _, round, _ in ledger.book.seals] == [1, 2, 3]
        with pytest.raises(Exception, match="nothing was reserved"):
            ledger.seal(run="another", round=1, stage=0, digest="00" * 32)


def test_a_site_that_cannot_pay_for_the_whole_run_does_not_begin(banded: Callable[..., Any]) -> None:
    """Not even one round of it."""
    server = banded(cap=3.0)
    reply = asked(server)
    assert (reply.status, reply.code, reply.sums) == ("refused", "budget", {})
    assert reservations(server) == {}


def test_a_round_that_was_killed_is_done_again_from_the_noise_before_it(
    banded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """Nothing of the first try has left: the same steps of the run, under the same reservation."""
    server = banded()
    assert asked(server).status == "ok"

    def dies(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("wardround.client.round.contribute", dies)
        with pytest.raises(Killed):
            asked(server, 2)
    again = banded()
    assert asked(again, 2).status == "ok"
    assert steps == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert list(reservations(again)) == [0]


def test_a_round_goes_on_at_its_checkpoint_with_the_noise_that_it_had(
    banded: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """The run's next step follows; nothing more is charged. A checkpoint of other noise is left alone."""

    def kept() -> Any:
        return keeping(banded(cap=20.0), tmp_path)

    def killed_after(step: int, round: int) -> None:
        with killed_at(monkeypatch, step):
            asked(kept(), round)

    killed_after(2, 1)
    again = kept()
    assert asked(again).status == "ok"
    assert steps == [0, 1, 2]
    assert list(reservations(again)) == [0]
    steps.clear()
    killed_after(2, 2)
    shutil.rmtree(tmp_path / NOISE_FOLDER)
    (tmp_path / "ledger").rename(tmp_path / "elsewhere")  # or it would refuse noise that is begun anew
    assert asked(kept(), 2).status == "ok"
    assert steps == [3, 4, 0, 1, 2]


def test_after_the_seal_no_step_is_done_again(
    banded: Callable[..., Any], tmp_path: Path, steps: list[int]
) -> None:
    """A new process without the kept contribution refuses: other noise of the same steps would tell both.

    Nor is there other noise to go on from: what left is what the next steps take back.
    """
    assert asked(banded()).status == "ok"
    kept = (tmp_path / NOISE_FOLDER / "round-00001.safetensors").read_bytes()
    reply = asked(banded())
    assert (reply.status, reply.code, reply.sums) == ("refused", "policy", {})
    assert (tmp_path / NOISE_FOLDER / "round-00001.safetensors").read_bytes() == kept
    assert asked(banded(), 2).status == "ok"
    assert steps == list(range(6))


def test_a_simulated_site_gives_the_same_bits_again(banded: Callable[..., Any], tmp_path: Path) -> None:
    """From the noise before the round, under the same seed; undisturbed or not."""

    def run(again: int) -> list[np.ndarray]:
        vectors = []
        for round in (1, 2):
            for _ in range(again):
                server = banded(seeded, simulation=True)
                request = server.request(round, sums=(TRAINING,))
                reply = answer(request, server.site)
                assert reply.status == "ok", reply.reason
            vectors.append(server.read(request, reply, TRAINING)[0])
        return vectors

    disturbed = run(2)
    for folder in ("ledger", NOISE_FOLDER):
        (tmp_path / folder).rename(tmp_path / f"{folder} before")
    for one, other in zip(disturbed, run(1), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("burnt", [False, True], ids=["missed", "burnt"])
def test_a_round_that_was_missed_or_burnt_moves_no_block(
    banded: Callable[..., Any], steps: list[int], burnt: bool
) -> None:
    """The next steps follow on the last ones that the site did: its patients stay b steps apart."""
    server = banded()
    assert asked(server).status == "ok"
    last = asked(server, 2, opened=()) if burnt else asked(server, 3)
    assert last.status == "ok", last.reason
    assert steps == list(range(6))


@pytest.mark.parametrize("lost", ["newest", "all"])
def test_noise_that_is_older_than_what_left_is_refused(
    banded: Callable[..., Any], tmp_path: Path, steps: list[int], lost: str
) -> None:
    """A folder that was put back, or is gone: the ledger knows what was sealed since; nothing is drawn."""
    server = banded(cap=50.0)
    assert [asked(server, round).status for round in (1, 2)] == ["ok", "ok"]
    assert after(tmp_path) == ["round-00001.safetensors", "round-00002.safetensors"]
    (tmp_path / NOISE_FOLDER / "round-00002.safetensors").unlink()
    if lost == "all":
        shutil.rmtree(tmp_path / NOISE_FOLDER)
    steps.clear()
    reply = asked(banded(cap=50.0), 3)
    assert (reply.status, reply.code, reply.sums) == ("refused", "policy", {})
    assert "noise of this run's earlier steps" in reply.reason
    assert not steps


def test_other_patients_under_the_same_run_are_refused(banded: Callable[..., Any]) -> None:
    """The run was charged to those that it began with."""
    server = banded(cap=50.0)
    assert asked(server).status == "ok"
    others = replace(server.site.privacy, patients=[*UNITS[:-1], "eve"])
    reply = asked(replace(server, site=replace(server.site, privacy=others)), 2)
    assert (reply.status, reply.code) == ("refused", "policy")


def test_a_key_from_a_seed_is_refused_where_nothing_is_simulated(
    banded: Callable[..., Any], tmp_path: Path
) -> None:
    """Before anything is charged, or kept."""
    server = banded(lambda what, round: (seeded if what is Purpose.BATCH else system)(what, round))
    reply = asked(server)
    assert (reply.status, reply.code) == ("refused", "policy")
    assert not (tmp_path / "ledger").exists()
    assert not (tmp_path / NOISE_FOLDER).exists()


def test_nothing_leaves_if_the_noise_cannot_be_kept(
    banded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be lost for the steps that follow."""

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    server = banded()
    with monkeypatch.context() as patched:
        patched.setattr(NoiseFile, "keep", full)
        reply = asked(server)
    assert (reply.status, reply.code, reply.sums) == ("failed", "storage", {})
    with server.site.privacy.charges.ledger() as ledger:
        assert ledger.sealed(run="run", round=1, stage=0) is None
    assert asked(banded()).status == "ok"


def test_the_last_rounds_noise_is_not_kept(banded: Callable[..., Any], tmp_path: Path) -> None:
    """No step follows that would take any of it back."""
    server = banded()
    assert [asked(server, round).status for round in (1, 2, 3)] == ["ok"] * 3
    assert after(tmp_path) == ["round-00001.safetensors", "round-00002.safetensors"]


def test_at_a_real_site_noise_lies_sealed(tmp_path: Path) -> None:
    """Whoever has it and what left has the exact sums: nothing of it is readable without the storage key."""
    owner = Owner(run_id="run", plan=digest("plan"), site="ward")
    file = NoiseFile.sealed(tmp_path, owner, storage_key(tmp_path))
    first = file.before(1, lambda: SystemSource("key"))
    assert (first.round, first.state.done) == (0, 0)
    kept = np.random.default_rng(0).normal(size=(2, 300))
    file.keep(NoiseState(first.state.key, 2, kept), round=1)
    found = file.before(2, lambda: SystemSource("key"))
    np.testing.assert_array_equal(found.state.kept, kept)
    assert (found.round, found.state.done, found.name) == (1, 2, first.name)
    assert first.state.key.hex() not in found.name
    content = (tmp_path / NOISE_FOLDER / "round-00001.sealed").read_bytes()
    secrets = [first.state.key, *(kept.ravel()[at : at + 2].tobytes() for at in range(0, 600, 7))]
    assert not any(secret in content for secret in secrets)
    other = NoiseFile.sealed(tmp_path, owner, storage_key(tmp_path / "other"))
    with pytest.raises(StorageError, match="does not open"):
        other.before(2, lambda: SystemSource("key"))


def test_noise_that_no_file_can_hold_is_refused() -> None:
    """By name, with what to do, before anything is charged."""
    require_room(20, 1_000_000)
    require_room(1, 10**12)
    with pytest.raises(ConfigError, match=r"(?s)7\.4 GiB.*privacy.bands"):
        require_room(100, 10_000_000)
