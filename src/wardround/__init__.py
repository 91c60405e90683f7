"""Wardround: federated LoRA fine-tuning across hospitals."""

from importlib.metadata import version

__version__ = version("wardround")
