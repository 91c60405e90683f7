"""Merges an adapter into its base model, and proves from what lies on disk that nothing was lost."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel

from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import DataContract
from wardround.runtime.files import atomic_folder
from wardround.training.adapters.contract import AdapterMethod
from wardround.training.base_model import DTYPES, BaseModelConfig, load_base, quiet, without_peft_noise
from wardround.training.merge_places import check_places
from wardround.training.tasks.contract import Encoded, Task
from wardround.training.workbench import pick_device, with_tokenizer

Logits = list[NDArray[np.float32]]

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest relative difference of logits, by the base's dtype: a merge rounds W + sBA to that dtype once."""


@dataclass(frozen=True)
class Difference:
    """Two models' logits on the same samples: max |a − b|, and that over max |reference|."""

    largest: float
    relative: float


@dataclass(frozen=True)
class MergeReport:
    """What a merge did and how well it kept the adapter.

    Attributes:
        folder: Where the merged model is, or would have been.
        passed: Whether it was put there.
        reason: Why not, or the empty string.
        base: Name of the base that was merged into, always unquantised.
        parity: Merged, as re-read from disk, against the adapter on that base.
        tolerance: Most that `parity.relative` may be.
        against_quantised: Merged against the adapter on the quantised base that it was trained on, or
            None where the base was not quantised. It shows the quantisation's own error; it decides nothing.
        samples: Samples compared.
        adapted_modules: Modules whose adapter is not zero.
        changed_modules: Those of them whose merged weight differs from the base's, on disk.
        quantisation: Of the base that the adapter was trained on; the merge took the same checkpoint without.
    """

    folder: Path
    passed: bool
    reason: str
    base: str
    parity: Difference
    tolerance: float
    against_quantised: Difference | None
    samples: int
    adapted_modules: int
    changed_modules: int
    quantisation: str = "none"


def merge_adapter(
    adapter_folder: Path,
    base: BaseModelConfig,
    method: AdapterMethod,
    task: Task,
    data: DataContract,
    out: Path,
    *,
    samples: Sequence[Encoded],
    tolerance: float | None = None,
) -> MergeReport:
    """Write the merged model to `out`, once the re-read files answer as the adapter on its base does.

    A quantised base is not merged into: the adapter goes into the same checkpoint unquantised, and
    both differences are reported.

    Args:
        adapter_folder: PEFT's two files.
        base: The base model that the adapter was trained on.
        method: What kind of adapter it is.
        task: Loads the model through its plain Auto class.
        data: The plan's data contract.
        out: New folder for weights (safetensors), config and tokenizer.
        samples: What both models are asked; at least one.
        tolerance: On the relative difference; None takes `TOLERANCES` for the dtype.

    Returns:
        The report. Where it has not passed, nothing is left at `out`.

    Raises:
        ConfigError: `out` holds something already, or there is no sample.
        ModelError: Base or adapter cannot be loaded, or do not belong together.
        StorageError: The merged model cannot be written (a full disk); nothing is left.
    """
    check_places(adapter_folder, out)
    if not samples:
        raise ConfigError("a merge is proven on samples, and there is none", remedy="give at least one row")
    # A quantised base's digest is of its files, not of the weights as they are loaded here.
    plain = (
        base
        if base.quantisation == "none"
        else base.model_copy(update={"quantisation": "none", "digest": None})
    )
    limit = TOLERANCES[base.dtype] if tolerance is None else tolerance
    cpu = torch.device("cpu")
    loaded = load_base(plain, task, data, device=cpu)
    data = with_tokenizer(data, loaded, task)
    nonzero = method.changed_weights(adapter_folder)
    digests = weight_digests(loaded.model, nonzero)
    expected = logits(with_adapter(loaded.model, adapter_folder), task, data, samples, cpu)
    quantised = _quantised_logits(base, adapter_folder, task, data, samples)
    merged = _merged(plain, task, data, adapter_folder)
    try:
        with atomic_folder(out) as staged:
            _write(merged, partial(task.processor.save, loaded.tokenizer), staged)
            del merged
            with quiet():
                reread, info = task.load_model(
                    str(staged), data, dtype=DTYPES[base.dtype], attn_implementation=base.attention,
                    use_safetensors=True, trust_remote_code=False,
                )  # fmt: skip
            found = logits(reread.train(False), task, data, samples, cpu)
            changed = sum(digest != digests[name] for name, digest in weight_digests(reread, nonzero).items())
            parity = difference(found, expected)
            reason = _fault(parity, limit, sorted(info["missing_keys"]), len(nonzero), changed)
            report = MergeReport(
                folder=out, passed=not reason, reason=reason, base=loaded.name,
                parity=parity, tolerance=limit,
                against_quantised=None if quantised is None else difference(found, quantised),
                samples=len(samples), adapted_modules=len(nonzero), changed_modules=changed,
                quantisation=base.quantisation,
            )  # fmt: skip
            _put_in_place_only_if_passed(report)
    except _UnprovenError as unproven:
        return unproven.report
    return report


class _UnprovenError(Exception):
    """Takes the report out of the folder that is not to be kept."""

    def __init__(self, report: MergeReport) -> None:
        self.report = report
        super().__init__(report.reason)


def _put_in_place_only_if_passed(report: MergeReport) -> None:
    if not report.passed:
        raise _UnprovenError(report)


def _fault(parity: Difference, limit: float, missing: list[str], adapted: int, changed: int) -> str:
    if missing:
        return f"the written files lack weights: {', '.join(missing[:3])}"
    if not parity.relative <= limit:  # NaN fails as well
        return f"logits differ by {parity.relative:.3g} (relative), more than {limit:.3g}"
    if adapted and not changed:
        return f"the merged weights equal the base's, although the adapter of {adapted} modules is not zero"
    return ""


def logits(
    model: torch.nn.Module, task: Task, data: DataContract, samples: Sequence[Encoded], device: torch.device
) -> Logits:
    """Logits of each sample alone, so that padding plays no part, as float32."""
    answers = []
    with torch.inference_mode():
        for sample in samples:
            batch = {key: t.to(device) for key, t in task.collate([sample], data).items() if key != "labels"}
            answers.append(model(**batch).logits.float().cpu().numpy())
    return answers


def difference(found: Logits, reference: Logits) -> Difference:
    """Largest absolute difference, and its ratio to the largest reference logit. NaN where one is NaN."""
    largest = float(np.max([np.max(np.abs(a - b)) for a, b in zip(found, reference, strict=True)]))
    scale = float(np.max([np.max(np.abs(b)) for b in reference]))
    return Difference(largest, largest / max(scale, float(np.finfo(np.float32).tiny)))


def weight_digests(model: torch.nn.Module, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the bytes of some weights, by name."""
    state = model.state_dict()
    table = {}
    for name in names:
        if name not in state:
            raise ModelError(
                "the adapter does not belong to this base model", found=f"an adapter for {name!r}",
                remedy="give the base model that it was trained on",
            )  # fmt: skip
        flat = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        table[name] = hashlib.sha256(flat.numpy().data).hexdigest()
    return table


def with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """PEFT's own loading, except that an adapter which does not fit is an error and not a warning.

    Raises:
        ModelError: It does not fit, or its configuration cannot be read.
    """
    with without_peft_noise():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning) as error:
            raise ModelError(
                f"the adapter in {folder} does not fit the base model",
                found=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}",
                expected="the base model that it was trained on", remedy="correct the base model's path",
            ) from error  # fmt: skip
    return adapted.train(False)


def _merged(base: BaseModelConfig, task: Task, data: DataContract, folder: Path) -> PreTrainedModel:
    """The adapter merged into a freshly loaded base, every weight in the dtype that the base has it in."""
    fresh = load_base(base, task, data, device=torch.device("cpu")).model
    dtypes = {name: parameter.dtype for name, parameter in fresh.named_parameters()}
    merged = cast("PreTrainedModel", with_adapter(fresh, folder).merge_and_unload(safe_merge=True))
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    return merged


def _write(merged: PreTrainedModel, save_processor: Callable[[Path], None], folder: Path) -> None:
    with quiet():
        merged.save_pretrained(folder, safe_serialization=True)
        save_processor(folder)


def _quantised_logits(
    base: BaseModelConfig, adapter_folder: Path, task: Task, data: DataContract, samples: Sequence[Encoded]
) -> Logits | None:
    if base.quantisation == "none":
        return None
    device = pick_device("auto")
    loaded = load_base(base, task, data, device=device)
    return logits(with_adapter(loaded.model, adapter_folder), task, data, samples, device)
