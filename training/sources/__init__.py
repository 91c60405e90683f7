"""Data sources: one file each. See `contract.py` for what a file has to provide."""

from wardround.core.registry import Registry
from wardround.training.sources.contract import Source as Source

SOURCES: Registry[Source] = Registry(
    kind="data source", package="wardround.training.sources", attribute="SOURCE", group="wardround.sources"
)
