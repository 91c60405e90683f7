"""What `strategy.name: auto` and `local.optimiser_state: auto` mean for the rest of a configuration.

`docs/benchmarks.md` has what the choice rests on: tangent aggregation with kept moments was ahead of the mean
of factors wherever both were trained on all rows. What it cannot be used for is averaged as before, so that
`auto` refuses nothing that `fedavg` would take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

AUTO: Final = "auto"
PRODUCTS: Final = "tangent"
PARAMETERS: Final = "fedavg"
TURNED: Final = frozenset({"none", "momentum"})
"""Server optimisers that `tangent` has."""


def with_strategy(values: Any) -> Any:
    """A configuration with a name for each `auto`; anything else, and what is no mapping, as it is.

    Args:
        values: Unchecked, as a person wrote it: what is malformed is left to the checks that follow.
    """
    if not isinstance(values, Mapping):
        return values
    chosen, strategy, local = dict(values), _part(values, "strategy"), _part(values, "local")
    if strategy.get("name") == AUTO:
        chosen["strategy"] = {**strategy, "name": PRODUCTS if over_products(values) else PARAMETERS}
    if local.get("optimiser_state") == AUTO:
        name = _part(chosen, "strategy").get("name")
        chosen["local"] = {
            **local,
            "optimiser_state": "keep" if name == PRODUCTS and _none(values) else "reset",
        }
    return chosen


def over_products(values: Mapping[str, Any]) -> bool:
    """Whether tangent aggregation can be used: factors, no privacy, no more of the server than it has."""
    adapter, options = _part(values, "adapter"), _part(values, "strategy", "options")
    server = _part(options, "server").get("optimiser", "none")
    return (
        _none(values)
        and adapter.get("method", "lora") == "lora"
        and _part(adapter, "options").get("targets") != "none"
        and _part(values, "encoding", "compression").get("method") != "top_k"
        and server in TURNED
    )


def _none(values: Mapping[str, Any]) -> bool:
    """Whether nothing is private."""
    return not values.get("privacy")


def _part(values: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for name in path:
        found = values.get(name)
        values = found if isinstance(found, Mapping) else {}
    return values
