"""A simulation on a Ray cluster that runs already: two nodes, one of which is lost in the middle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wardround.simulations import ray_workers
from wardround.simulations.config import RunConfig
from wardround.simulations.ray_workers import LOOPBACK, alone_on_this_machine, imported
from wardround.simulations.simulate import run_simulation

pytest.importorskip("ray", reason="wardround[ray] is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its processes to themselves
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WARDS = 6


@pytest.fixture
def nodes() -> Iterator[tuple[Any, Any]]:
    """A cluster of two nodes of one CPU each, on this machine and for it alone; and its second node."""
    imported()
    from ray.cluster_utils import Cluster

    with alone_on_this_machine():
        cluster = Cluster()
        cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK, include_dashboard=False)
        second = cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK, include_dashboard=False)
        try:
            yield cluster, second
        finally:
            cluster.shutdown()


def test_a_node_that_is_lost_takes_nothing_with_it(
    notes: Callable[..., Any], nodes: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sites of its worker train at the other one, to the same adapter; nothing waits for the node."""
    cluster, second = nodes
    settings: Callable[..., RunConfig] = notes(rows=66, wards=WARDS, rounds=2)
    inline = run_simulation(settings("inline"))
    start, started = ray_workers.RayCrew.start, list[int]()

    def losing(crew: ray_workers.RayCrew, jobs: Any) -> Any:
        wait = start(crew, jobs)
        started.append(len(jobs))
        if len(started) == 4:
            assert len(crew.workers) == 2, "one on each node"
            cluster.remove_node(second, allow_graceful=False)
        return wait

    monkeypatch.setattr(ray_workers.RayCrew, "start", losing)
    simulation = {"backend": "ray", "ray": {"address": cluster.address}}
    workers = run_simulation(settings("ray", simulation=simulation))
    assert len(started) == 3 * WARDS
    assert workers.federated.outcome.last.adapter.digest == inline.federated.outcome.last.adapter.digest


def test_nothing_of_a_ray_of_ones_own_listens_to_the_network() -> None:
    """Every port of its processes is this machine's own."""
    import psutil

    from wardround.simulations.config import RayConfig

    with ray_workers.connected(imported(), RayConfig()):
        import ray

        ray.get(ray.remote(lambda: 1).remote())
        own = psutil.Process()
        ports = [
            (process.name(), connection.laddr.ip)
            for process in own.children(recursive=True)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert len(ports) >= 3
    assert {ip.removeprefix("::ffff:") for _, ip in ports} == {LOOPBACK}, ports
    assert "ray" in sys.modules
