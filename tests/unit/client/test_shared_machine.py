"""A worker stands back for others, and takes no more memory than it may; each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wardround.client.shared_machine import cap_memory
from wardround.client.site_settings import SiteSettings, read_site_settings
from wardround.core.errors import ConfigError


def in_a_process(program: str) -> str:
    """What it prints, in a session of its own as a worker has it."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_stands_back_by_itself_and_as_a_group(tmp_path: Path) -> None:
    """And never comes forward again."""
    group = tmp_path / "autogroup"
    group.write_text("")
    said = in_a_process(
        "import os\nfrom pathlib import Path\nfrom wardround.client.shared_machine import stand_back\n"
        f"stand_back(10, Path({str(group)!r}))\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0))\n"
        "stand_back(3, Path('/nowhere'))\nprint(os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    least = max(10, os.getpriority(os.PRIO_PROCESS, 0))
    assert said.split() == [str(least)] * 2
    assert group.read_text() == "10"


def test_memory_ends_where_the_cap_is() -> None:
    """As a MemoryError, which the microbatch and the model know; what fits is had."""
    said = in_a_process(
        "import numpy\nfrom wardround.client.shared_machine import cap_memory\n"
        "cap_memory(0.5, 'cpu')\nnumpy.zeros(2**20)\n"
        "try:\n    numpy.zeros(2**30)\nexcept MemoryError:\n    print('full')\n"
    )
    assert said == "full"


def test_torch_says_it_so_that_it_is_known() -> None:
    """By its own error, in the words that `out_of_memory` looks for."""
    said = in_a_process(
        "import torch\nfrom wardround.client.shared_machine import cap_memory\n"
        "from wardround.training.device_memory import out_of_memory\n"
        "cap_memory(1.5, 'cpu')\n"
        "try:\n    torch.ones(2**31)\nexcept RuntimeError as error:\n    print(out_of_memory(error))\n"
    )
    assert said == "True"


def test_without_a_cap_nothing_is_capped() -> None:
    """By default."""
    before = in_a_process("import resource; print(resource.getrlimit(resource.RLIMIT_DATA))")
    cap_memory(None, "cpu")
    assert in_a_process("import resource; print(resource.getrlimit(resource.RLIMIT_DATA))") == before


def test_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    """A process cannot come forward by them."""
    path = tmp_path / "site.yaml"
    for wrong in ({"niceness": -1}, {"niceness": 20}, {"memory_gib": 0}):
        path.write_text(yaml.safe_dump({"models": [{"path": "m"}], "source": {"path": "r"}} | wrong))
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            read_site_settings(path)
    assert SiteSettings.model_fields["niceness"].default == 10
