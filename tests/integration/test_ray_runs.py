"""Simulations whose sites are trained by workers on Ray: the same run, whoever trains or is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from who_trains import KINDS, figures, same_run, trains_at

from wardround.core.errors import ConfigError, ModelError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import SiteReplied
from wardround.simulations import ray_workers, together
from wardround.simulations.config import RayConfig, RunConfig
from wardround.simulations.ray_workers import Recipe, connected, imported, room
from wardround.simulations.simulate import run_simulation

ray = pytest.importorskip("ray", reason="wardround[ray] is not installed")
WARDS = 6
pytestmark = [  # Ray leaves the processes that it begins to themselves
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """One Ray for this file: to begin one takes seconds."""
    with connected(imported(), RayConfig()):
        yield


@pytest.fixture
def settings(notes: Callable[..., Any], own_ray: None) -> Callable[..., RunConfig]:
    """Six wards of different sizes, two rounds."""
    make: Callable[..., RunConfig] = notes(rows=66, wards=WARDS, rounds=2)

    def by_backend(name: str, backend: str, **sections: Any) -> RunConfig:
        simulation = {"backend": backend, "ray": {"workers": 2}} | sections.pop("simulation", {})
        return make(name, simulation=simulation, **sections)

    return by_backend


@KINDS
@pytest.mark.slow
def test_who_trains_changes_nothing(settings: Callable[..., RunConfig], sections: dict[str, Any]) -> None:
    """The adapter and the figures of each site have the same bits, noise and all."""
    inline = run_simulation(settings("inline", "inline", **sections))
    workers = run_simulation(settings("ray", "ray", **sections))
    assert same_run(inline, workers)

    assert figures(inline) == figures(workers)
    assert len(figures(workers)) == 2 * WARDS
    assert all(figures(workers).values())


@pytest.mark.slow
def test_rows_travel_once_and_no_site_trains_here(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each site's rows go to Ray once for all rounds; this process trains none of them, and scores none."""
    from wardround.client import work

    puts: list[int] = []
    put = ray_workers.RayCrew._put

    def counted(crew: ray_workers.RayCrew, rows: Any) -> Any:
        before = len(crew._rows)
        found = put(crew, rows)
        puts.append(len(crew._rows) - before)
        return found

    def here(*_: Any) -> None:
        raise AssertionError("a site trained, or was scored, in the process that began the run")

    monkeypatch.setattr(ray_workers.RayCrew, "_put", counted)
    monkeypatch.setattr(work, "train_locally", here)
    monkeypatch.setattr(work, "score", here)
    run_simulation(settings("ray", "ray"))
    assert sum(puts) == 2 * WARDS, "to train on, and to be scored"
    assert len(puts) == 5 * WARDS, "in each of two rounds, and once more to be scored"


@pytest.mark.slow
def test_a_worker_that_is_killed_is_begun_anew_and_nothing_changes(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its round is done again by the one that takes its place."""
    inline = run_simulation(settings("inline", "inline"))
    start, started, killed = ray_workers.RayCrew.start, list[int](), list[int]()

    def killing(crew: ray_workers.RayCrew, jobs: Any) -> Any:
        wait = start(crew, jobs)
        started.append(len(jobs))
        if len(started) == 4:
            alive = {
                a["ActorID"]: a["Pid"] for a in ray._private.state.actors().values() if a["State"] == "ALIVE"
            }
            killed.append(alive[crew.workers[0]._actor_id.hex()])
            os.kill(killed[0], signal.SIGKILL)
        return wait

    monkeypatch.setattr(ray_workers.RayCrew, "start", killing)
    assert same_run(inline, run_simulation(settings("ray", "ray")))
    assert len(started) == 3 * WARDS
    assert not Path(f"/proc/{killed[0]}").exists()


@pytest.mark.slow
def test_a_workers_error_is_the_sites_own(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that cannot train fails by its own code and words; the others are in the sum."""
    start = ray_workers.RayCrew.start

    def without_rows(crew: ray_workers.RayCrew, jobs: Any) -> Any:
        return start(crew, [replace(job, encoded=[]) if trains_at(job, "w1") else job for job in jobs])

    monkeypatch.setattr(ray_workers.RayCrew, "start", without_rows)
    monkeypatch.setattr(together, "same", lambda *_: True)
    result = run_simulation(settings("ray", "ray", rounds={"quorum": 0.5}))
    failed = [
        e
        for e in read_events(result.folder / "metrics.jsonl")
        if isinstance(e, SiteReplied) and e.status == "failed"
    ]
    assert {(e.site, e.code) for e in failed} == {("w1", "no_rows")}
    assert len(failed) == 2


@pytest.mark.slow
def test_a_worker_with_another_base_model_is_refused(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, and before anything is trained."""
    of = Recipe.of

    def other(config: Any, plan: Any, bench: Any) -> Recipe:
        return replace(of(config, plan, bench), base="0" * 64)

    monkeypatch.setattr(Recipe, "of", staticmethod(other))
    with pytest.raises(ModelError, match="another base model"):
        run_simulation(settings("ray", "ray"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (RayConfig(), 8), (RayConfig(cpus=3), 2), (RayConfig(workers=5), 5), (RayConfig(gpus=0.5), 4),
        (RayConfig(gpus=1.0), 2), (RayConfig(workers=9), None), (RayConfig(cpus=9), None),
        (RayConfig(gpus=3.0), None),
    ],
    ids=str,
)  # fmt: skip
def test_as_many_workers_as_there_is_room_for(asked: RayConfig, expected: int | None) -> None:
    """And no more are promised: Ray would wait for the rest for ever."""
    resources = {"CPU": 8.0, "GPU": 2.0}
    if expected is not None:
        assert room(resources, asked) == expected
        return
    with pytest.raises(ConfigError, match="no room"):
        room(resources, asked)


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not there."""
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"wardround\[ray\]"):
        imported()


@pytest.mark.slow
def test_an_address_without_a_cluster_is_named(tmp_path: Path) -> None:
    """Asked in a process of its own, since this one is connected."""
    import subprocess
    import sys

    code = (
        "from wardround.simulations.ray_workers import *\n"
        "from wardround.core.errors import ConfigError\n"
        "try:\n"
        "    with connected(imported(), RayConfig(address='127.0.0.1:1')): pass\n"
        "except ConfigError as error:\n"
        "    print(error.what, '|', error.found, '|', error.remedy)\n"
    )
    environment = {
        **os.environ,
        "RAY_gcs_rpc_server_connect_timeout_s": "1",
        "RAY_NUM_REDIS_GET_RETRIES": "1",
    }
    done = subprocess.run(  # noqa: PLW1510 - what it says is looked at
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    assert "Ray cannot be reached" in done.stdout, done.stderr[-2000:]
    assert "simulation.ray.address" in done.stdout
