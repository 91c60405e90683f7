"""Formats of text for causal language models: one file each. See `contract.py` for what a file provides."""

from wardround.core.registry import Registry
from wardround.training.text_formats.contract import TextFormat as TextFormat

FORMATS: Registry[TextFormat] = Registry(
    kind="text format",
    package="wardround.training.text_formats",
    attribute="FORMAT",
    group="wardround.text_formats",
)
