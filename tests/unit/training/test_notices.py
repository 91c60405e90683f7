"""One notice of bitsandbytes stays off the terminal; its other warnings do not.

That a new interpreter says nothing of it is held by test_the_simulation_of_the_page_runs.
"""

from __future__ import annotations

import logging

import pytest

import wardround.training  # noqa: F401 - it puts the filter in place


def test_only_the_notice_on_the_optional_kernel_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """By the beginning of its text, on the logger that gives it."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with caplog.at_level(logging.WARNING, logger=logger.name):
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
        logger.warning("Something that matters: %s.", "a wrong result")
    assert [record.getMessage() for record in caplog.records] == ["Something that matters: a wrong result."]
