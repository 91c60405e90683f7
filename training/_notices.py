"""Keeps one notice of a library that nobody asked for off the terminal."""

from __future__ import annotations

import logging

_KERNEL_NOTICE = "Failed to load CPU gemm_4bit_forward"


def without_kernel_notice(record: logging.LogRecord) -> bool:
    """Whether a record of bitsandbytes is any other than that an optional kernel is not installed."""
    return not str(record.msg).startswith(_KERNEL_NOTICE)


def leave_out_kernel_notice() -> None:
    """Drop that one notice of bitsandbytes 0.50, and nothing else.

    PEFT imports bitsandbytes wherever it is installed, and on a CPU with AVX-512 the import warns, whether or
    not anything is quantised. It has to be called before PEFT is first imported; again does no harm.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(without_kernel_notice)
