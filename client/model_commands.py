"""`wardround site model import`: a base model from a folder behind the firewall, checked, kept, named."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from rich.console import Console

from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.client.model_files import NAME, copy_files, model_files, require_room
from wardround.client.offered_plans import named_plan
from wardround.client.settings_edit import change_settings, changed_text, difference
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import DataContract, TrainingPlan
from wardround.runtime.files import atomic_folder, private_folder

MODELS: Final = "models"
"""Folder of the base models in a site's folder."""
Dtype = Literal["float32", "bfloat16", "float16"]
CAUSAL: Final = "causal_lm"
CLASSIFIER: Final = "sequence_classification"


@dataclass(frozen=True)
class Wanted:
    """How a model is loaded to find its digest, and what that has to be.

    Attributes:
        task: Its name: which head is looked for, and what the weights are called, depend on it.
        dtype: Of the weights.
        plan: Whose base it is to be; None: of no plan in particular.
        digest: That it has to have; None: whatever it has.
    """

    task: str
    dtype: Dtype
    plan: TrainingPlan | None
    digest: str | None


def import_model(
    folder: Path,
    source: Path,
    *,
    name: str | None,
    plan: str | None,
    digest: str | None,
    task: str | None,
    dtype: str | None,
    ask: Callable[[str], bool] | None,
    as_json: bool,
) -> None:
    """Copy a base model into the site's folder, verify it, and name it in `site.yaml`.

    It is copied under another name, loaded from the copy without a network, and gets its own name when all
    of it is right: whatever fails leaves nothing. A folder in the site's `models/` is not copied again.

    Args:
        folder: Of the site.
        source: Of the model.
        name: In `models/`; None: that of the folder.
        plan: As of `named_plan`: whose base it has to be; None: any.
        digest: That it has to have.
        task: Without a plan: as which it is loaded; None: as what its config says that it is.
        dtype: Without a plan: in which precision.
        ask: Puts a question to the person; None asks nothing.
        as_json: Print what was done as JSON.

    Raises:
        ModelError: Something in the folder is not taken in, it does not load, or its digest is another.
        ConfigError: A bad name, settings that contradict the plan, or the person says no.
        StorageError: The disk has no room, or fails.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that would ask a hub is imported
    site = open_site_folder(folder)
    site.require_present()
    own = _own(site, source)
    name = name or source.resolve().name
    if not NAME.fullmatch(name) or (own and name != source.resolve().name):
        raise ConfigError(
            "a model cannot have this name here", found=name, expected="letters, digits, '.', '_', '-'",
            remedy="choose another one with --name",
        )  # fmt: skip
    read_site_settings(site.path / FILE)  # a file that cannot be changed is found out before a copy is made
    files = model_files(source)
    wanted = _wanted(site, source, plan, digest, task, dtype)
    target, show = site.path / MODELS / name, _say if not as_json else _ignore
    if own:
        found = _checked(source, wanted, name)
        changed = _name_it(site, name, found, ask, show)
    else:
        private_folder(target.parent)
        show(f"{len(files)} files, {require_room(files, target.parent):,} bytes")
        with atomic_folder(target) as making:
            making.chmod(0o700)
            copy_files(files, making)
            found = _checked(making, wanted, name)
            show(f"digest {found} ({wanted.task}, {wanted.dtype})")
            for line in _planned(site, name, found):
                show(line)
            if ask is not None and not ask(f"Keep it as {target}, and write this to {FILE}?"):
                raise ConfigError("the model was not taken in", remedy="nothing was kept or written")
        changed = _name_it(site, name, found, None, _ignore)
    if as_json:
        said = {"path": f"{MODELS}/{name}", "digest": found, "task": wanted.task, "dtype": wanted.dtype}
        sys.stdout.write(json.dumps(said | {"changed": changed}, indent=2) + "\n")
        return
    _say(f"{FILE} names it now" if changed else f"{FILE} names it already")
    if wanted.digest is None:
        _say("Compare the digest with what the model's owner says; another task or dtype has another one.")


def _planned(site: SiteFolder, name: str, digest: str) -> Sequence[str]:
    """What would change in `site.yaml`."""
    text = (site.path / FILE).read_text(encoding="utf-8")
    return difference(text, changed_text(text, _with_model(site, name, digest)), FILE)


def _name_it(
    site: SiteFolder, name: str, digest: str, ask: Callable[[str], bool] | None, show: Callable[[str], None]
) -> bool:
    return change_settings(site.path / FILE, _with_model(site, name, digest), ask=ask, show=show)


def _wanted(
    site: SiteFolder, source: Path, plan: str | None, digest: str | None, task: str | None, dtype: str | None
) -> Wanted:
    if plan is None:
        precision = dtype or "float32"
        if precision not in ("float32", "bfloat16", "float16"):
            raise ConfigError("unknown --dtype", found=dtype, expected="float32, bfloat16 or float16")
        return Wanted(task or _task_of(source), precision, None, digest)  # type: ignore[arg-type]  # looked at above
    signed = named_plan(site, plan).plan
    if task is not None or dtype is not None:
        raise ConfigError("the plan says task and dtype", remedy="leave --task and --dtype out")
    if digest is not None and digest != signed.base.digest:
        raise ConfigError(
            "the plan's base model has another digest than --digest", found=signed.base.digest,
            expected=digest, remedy="ask the operator which base model the plan is for",
        )  # fmt: skip
    return Wanted(signed.task.name, signed.base.dtype, signed, signed.base.digest)


def _task_of(source: Path) -> str:
    """What the model's config says that it is; anything but a language model is loaded as a classifier."""
    config: Any = json.loads((source / "config.json").read_bytes())
    named = config.get("architectures") or [""]
    return CAUSAL if str(named[0]).endswith(("ForCausalLM", "LMHeadModel")) else CLASSIFIER


def _checked(folder: Path, wanted: Wanted, name: str) -> str:
    """Load it as a plan would, on the CPU; its digest, held against what is wanted.

    Raises:
        ModelError: It does not load, or digest or tokenizer is another.
    """
    import torch

    from wardround.training.base_model import load_base
    from wardround.training.settings import BaseModelConfig
    from wardround.training.tasks import TASKS
    from wardround.training.workbench import with_tokenizer

    task, plan = TASKS.get(wanted.task), wanted.plan
    data = DataContract(columns={}, labels=("0", "1")) if plan is None else plan.data
    config = BaseModelConfig(
        path=str(folder), dtype=wanted.dtype,
        quantisation="none" if plan is None else plan.base.quantisation,
        dropout="base" if plan is None else plan.base.dropout,
    )  # fmt: skip
    found = replace(load_base(config, task, data, device=torch.device("cpu")), name=name)
    if wanted.digest is not None and found.digest != wanted.digest:
        whose = "--digest" if plan is None else f"the plan's base {plan.base.name!r}"
        raise ModelError(
            f"the weights of {name!r} are not those of {whose}", found=found.digest, expected=wanted.digest,
            remedy=f"get the right copy; a digest is of the weights as they are loaded, here for "
            f"{wanted.task} in {wanted.dtype}", code="model_differs",
        )  # fmt: skip
    if plan is not None:
        with_tokenizer(plan.data, found, task)
    return found.digest


def _own(site: SiteFolder, source: Path) -> bool:
    return source.resolve().parent == (site.path / MODELS).resolve()


def _with_model(site: SiteFolder, name: str, digest: str) -> dict[str, Any]:
    """`models` of the site's settings with this one among them."""
    path, known = f"{MODELS}/{name}", list(yaml.safe_load((site.path / FILE).read_bytes())["models"])
    if not any(place.get("path") == path and place.get("digest") == digest for place in known):
        known.append({"path": path, "digest": digest})
    return {"models": known}


def _ignore(_: str) -> None:
    """Nobody is shown it."""


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
