"""What is used of Ray's internals: a Ray of one machine has to listen to it alone."""

from __future__ import annotations

import inspect
import os

import pytest

from wardround.simulations.ray_workers import LOOPBACK, alone_on_this_machine, imported

pytest.importorskip("ray", reason="wardround[ray] is not installed")


def test_what_stands_for_an_address_of_this_machine_is_where_it_is_replaced() -> None:
    """`tests/integration/test_ray_cluster.py` looks at the ports themselves."""
    imported()
    from ray._private import node, services

    kept = services.resolve_ip_for_localhost, services.get_node_ip_address
    assert list(inspect.signature(services.resolve_ip_for_localhost).parameters) == ["host"]
    assert "resolve_ip_for_localhost" in inspect.getsource(node) + inspect.getsource(services)
    with alone_on_this_machine():
        for host in ("localhost", LOOPBACK):
            assert services.resolve_ip_for_localhost(host) == LOOPBACK
        assert services.resolve_ip_for_localhost("192.0.2.7") == "192.0.2.7"
        assert services.get_node_ip_address() == LOOPBACK
    assert (services.resolve_ip_for_localhost, services.get_node_ip_address) == kept


def test_nothing_is_reported_to_the_makers_of_ray() -> None:
    """Unless a person has said so."""
    imported()
    from ray._common.usage import usage_lib

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not usage_lib.usage_stats_enabled()
