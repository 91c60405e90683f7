"""The work of simulators.py as plain PyTorch and PEFT does it, and the bare loop; knows nothing of Wardround.

Everything that a peer needs of the work stands in this file, which runs in each peer's own environment: the
model with the adapter on it, a site's minibatches, the loss, the steps of a site. As a script it is the bare
loop: no framework, one process or several that add their sums up.

    python _simulators_plain.py WORK OUT [--processes N] [--threads N] [--bf16]

WORK is a folder that `_simulators_case.py` wrote. To OUT go `marks.jsonl` (when training began and each round
ended, Unix time) and `adapter-ROUND.safetensors`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file

NO_LOSS = -100
BEGAN = "began"


@dataclass(frozen=True)
class Rows:
    """Tokenised rows, one after another.

    Attributes:
        tokens: Of all rows.
        targets: The token under loss at its own place, −100 elsewhere; of a classifier empty.
        starts: Where each row begins, and where the last one ends.
        labels: Class of each row; of a language model −1.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]

    @staticmethod
    def read(path: Path) -> Rows:
        """What was written by `write`."""
        with np.load(path) as file:
            return Rows(file["tokens"], file["targets"], file["starts"], file["labels"])

    def write(self, path: Path) -> None:
        """As npz, without pickle."""
        np.savez(path, tokens=self.tokens, targets=self.targets, starts=self.starts, labels=self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.starts)

    def batch(self, indices: NDArray[Any], pad: int) -> dict[str, torch.Tensor]:
        """Rows padded on the right to the longest."""
        lengths = self.lengths[indices]
        shape = (len(indices), int(lengths.max()))
        ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, NO_LOSS, np.int64)
        for place, index in enumerate(indices):
            own = slice(self.starts[index], self.starts[index + 1])
            ids[place, : lengths[place]] = self.tokens[own]
            mask[place, : lengths[place]] = 1
            if self.targets.size:
                labels[place, : lengths[place]] = self.targets[own]
        if not self.targets.size:
            labels = self.labels[indices]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class Work:
    """What every contender does.

    Attributes:
        folder: Where it was read from.
        settings: `base` (a folder), `task`, `classes`, `pad`, `learning_rate`, `sites`, `rounds`.
        rows: Of all sites, in order of the sites.
        held: Nobody trains on them.
        sites: Where each site's rows begin, and where the last one's end.
        batches: (rounds, sites, steps, batch): places among the site's own rows.
    """

    folder: Path
    settings: dict[str, Any]
    rows: Rows
    held: Rows
    sites: NDArray[np.int64]
    batches: NDArray[np.int32]

    @staticmethod
    def read(folder: Path) -> Work:
        """As `_simulators_case.py` wrote it."""
        with np.load(folder / "plan.npz") as file:
            sites, batches = file["sites"], file["batches"]
        settings = json.loads((folder / "work.json").read_text())
        rows, held = (Rows.read(folder / f"{name}.npz") for name in ("rows", "held"))
        return Work(folder, settings, rows, held, sites, batches)

    @property
    def rounds(self) -> int:
        """Of the whole run."""
        return len(self.batches)

    @property
    def count(self) -> int:
        """Number of sites."""
        return len(self.sites) - 1

    def minibatches(self, round: int, site: int) -> Iterator[dict[str, torch.Tensor]]:
        """Those of one local round, in order; rounds count from 1."""
        for places in self.batches[round - 1, site]:
            yield self.rows.batch(self.sites[site] + places, self.settings["pad"])


def load_model(work: Work, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> torch.nn.Module:
    """The frozen base with the initial adapter on it, which trains in float32; no dropout anywhere."""
    import transformers
    from peft import PeftModel

    settings = work.settings
    kind: Any = getattr(
        transformers, "AutoModelForSequenceClassification" if settings["classes"] else "AutoModelForCausalLM"
    )
    extra = {"num_labels": settings["classes"]} if settings["classes"] else {}
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    base = kind.from_pretrained(
        settings["base"], dtype=dtype, attn_implementation=attention, ignore_mismatched_sizes=True, **extra
    )
    base.config.use_cache = False
    for module in base.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and "drop" in name.lower():
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model: torch.nn.Module = PeftModel.from_pretrained(base, work.folder / "initial", is_trainable=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name in the model → each tensor of the adapter."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved_name(name: str) -> str:
    """PEFT's name of a tensor in a saved adapter."""
    return name.replace(".default.", ".").replace(".modules_to_save", "")


def loss_of(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean over the rows, or over the target tokens, whose logits alone go through the softmax."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"]
    if labels.ndim > 1:
        places = labels[:, 1:] != NO_LOSS
        logits, labels = logits[:, :-1][places], labels[:, 1:][places]
    return F.cross_entropy(logits.float(), labels)


def train_site(
    model: torch.nn.Module,
    work: Work,
    round: int,
    site: int,
    context: contextlib.AbstractContextManager[Any] | None = None,
) -> float:
    """All steps of a site, from the adapter that is in the model; gives the last loss."""
    moving = list(trained(model).values())
    optimiser = torch.optim.AdamW(moving, lr=work.settings["learning_rate"], weight_decay=0.0)
    loss = torch.zeros(())
    for batch in work.minibatches(round, site):
        optimiser.zero_grad()
        with context or contextlib.nullcontext():
            loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimiser.step()
    return float(loss.detach())


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the adapter."""
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


def put(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy an adapter into the model."""
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(tensors[name])


def mark(out: Path, name: str, round: int = 0) -> None:
    """Note the time."""
    with (out / "marks.jsonl").open("a") as file:
        file.write(json.dumps({"mark": name, "round": round, "time_s": time.time()}) + "\n")


def keep(out: Path, round: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Note the end of a round and the adapter after it, by PEFT's names."""
    mark(out, "round", round)
    named = {saved_name(name): tensor.float().contiguous() for name, tensor in tensors.items()}
    save_file(named, out / f"adapter-{round}.safetensors")


def bare(work: Work, out: Path, *, rank: int, processes: int, bf16: bool) -> None:
    """FedAvg written out: every site in turn, its change added up, the mean of them taken."""
    model = load_model(work, torch.bfloat16 if bf16 else torch.float32)
    context = torch.autocast("cpu", torch.bfloat16) if bf16 else None
    state = tensors_of(model)
    if not rank:
        mark(out, BEGAN)
    for round in range(1, work.rounds + 1):
        total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in state.items()}
        for site in range(rank, work.count, processes):
            put(model, state)
            train_site(model, work, round, site, context)
            for name, parameter in trained(model).items():
                total[name] += parameter.detach().double() - state[name].double()
        if processes > 1:
            flat = torch.cat([tensor.flatten() for tensor in total.values()])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in total.values()])  # type: ignore[no-untyped-call]  # as above
            total = {name: part.view_as(total[name]) for name, part in zip(total, parts, strict=True)}
        state = {name: (tensor.double() + total[name] / work.count).float() for name, tensor in state.items()}
        if not rank:
            keep(out, round, state)


def side_by_side(arguments: list[str], processes: int) -> None:
    """The other processes of this script; each is its own interpreter."""
    children = [
        subprocess.Popen([sys.executable, __file__, *arguments, "--rank", str(rank)])
        for rank in range(processes)
    ]
    if any([child.wait() for child in children]):  # noqa: C419 - each of them is waited for
        raise SystemExit(1)


def main() -> None:
    """The bare loop."""
    parser = argparse.ArgumentParser(description="the bare loop of simulators.py")
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rank", type=int)
    args = parser.parse_args()
    if args.processes > 1 and args.rank is None:
        side_by_side(sys.argv[1:], args.processes)
        return
    torch.set_num_threads(args.threads)
    if args.processes > 1:
        store = cast("Any", torch.distributed).FileStore(str(args.out / "store"), args.processes)
        torch.distributed.init_process_group("gloo", store=store, rank=args.rank, world_size=args.processes)
    bare(Work.read(args.work), args.out, rank=args.rank or 0, processes=args.processes, bf16=args.bf16)
    if args.processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
