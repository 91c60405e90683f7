"""Aggregation algorithms as pure functions: one algorithm, one paper, one file. NumPy only."""

from wardround.core.registry import Registry
from wardround.strategies.contract import SumStrategy as SumStrategy

STRATEGIES: Registry[type[SumStrategy]] = Registry(
    kind="strategy",
    package="wardround.strategies",
    attribute="STRATEGY",
    group="wardround.strategies",
    not_names=frozenset({"contract", "adaptive_norm"}),
)
