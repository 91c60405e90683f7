"""Adapter methods: one file each. See `contract.py` for what a file has to provide."""

from wardround.core.registry import Registry
from wardround.training.adapters.contract import AdapterMethod as AdapterMethod

ADAPTERS: Registry[AdapterMethod] = Registry(
    kind="adapter method",
    package="wardround.training.adapters",
    attribute="ADAPTER",
    group="wardround.adapters",
)
