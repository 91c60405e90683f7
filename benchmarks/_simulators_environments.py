"""The environments of the peers of simulators.py: one each, made once, with the packages as PyPI has them.

What decides how fast a model trains (torch, transformers, PEFT and what they stand on) is pinned to what our
own environment has; the rest is each peer's own choice.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

CACHE = Path.home() / ".cache" / "wardround-benchmarks"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
SAME = (
    "accelerate",
    "huggingface-hub",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
"""Pinned to our own versions."""
NEEDED = ("torch", "transformers", "peft", "safetensors", "numpy")
PACKAGES = {"pfl": "pfl==0.6.0", "nvflare": "nvflare==2.9.0"}
DONE = "wardround-benchmark.txt"
"""Written last: an environment without it is made anew."""


def pinned(constraints: str) -> list[str]:
    """The lines of a constraints file that hold for peers as well."""
    lines = [line.split(";")[0].strip() for line in constraints.splitlines()]
    return [line for line in lines if re.split(r"[=<>!~]", line, maxsplit=1)[0].lower() in SAME]


def python_of(name: str, folder: Path = CACHE, *, shared: bool = False) -> Path:
    """The interpreter of a peer's environment, which is made where it is not there.

    Args:
        name: Key of `PACKAGES`.
        folder: Where environments are kept.
        shared: Let it see our own environment's packages behind its own, which saves minutes.

    Raises:
        RuntimeError: pip cannot install it; with its last words.
    """
    place = folder / (f"{name}-shared" if shared else name)
    python = place / "bin" / "python"
    wanted = PACKAGES[name]
    done = place / DONE
    if done.exists() and done.read_text().strip() == wanted:
        return python
    venv.EnvBuilder(with_pip=True, clear=True).create(place)
    if shared:
        (site,) = (place / "lib").glob("python*/site-packages")
        (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pins = place / "constraints.txt"
    pins.write_text("\n".join(pinned(CONSTRAINTS.read_text())) + "\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(pins), wanted]
    print(f"making {place}: {wanted}", file=sys.stderr, flush=True)
    said = subprocess.run(
        [*command, *([] if shared else NEEDED)], capture_output=True, text=True, check=False
    )
    if said.returncode:
        raise RuntimeError(f"{wanted} cannot be installed: {said.stderr[-1500:]}")
    done.write_text(wanted + "\n")
    return python
