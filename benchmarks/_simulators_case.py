"""The work of simulators.py: written once by our own code, into a folder that every contender reads."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _simulators_plain import Rows, Work, load_model, loss_of, put, saved_name, trained
from quality import parsed
from safetensors.numpy import load_file

from wardround.core.seeds import Purpose, generator
from wardround.runtime.events import EventStream
from wardround.runtime.locations import locate
from wardround.simulations.preparation import encode_all, prepare
from wardround.training.batches import plan_batches
from wardround.training.encoded_text import EncodedText
from wardround.training.workbench import Workbench

FIXED = 64
"""Tokens of each row where lengths are fixed."""
ROWS = 24
"""Of each site."""
HELD = 200
"""Rows that nobody trains on; their loss is compared."""
STEPS = 10
MOST_PROMPT = 40
"""Characters are not counted but tokens: a fixed row of a language model has at least 24 of an answer."""
MODELS: dict[str, list[str]] = {
    "minilm": ["model=minilm", "data=pqa_sections", "adapter.options.targets=[query,value]"],
    "med_llama": [
        "model=med_llama", "data=medquad_qa", "adapter.options.targets=[q_proj,v_proj]",
        "release.metric=bits_per_byte", "release.direction=min",
    ],
}  # fmt: skip
SETS = {"minilm": "pqa_sections", "med_llama": "medquad"}


@dataclass(frozen=True)
class Case:
    """One line of the table's left half.

    Attributes:
        model: Key of `MODELS`.
        batch: Rows of a minibatch.
        lengths: `ragged`: as the rows are, up to the set's own `max_length`; `64`: all of them.
        sites: Number.
        rounds: Number.
    """

    model: str
    batch: int
    lengths: str
    sites: int
    rounds: int

    @property
    def record(self) -> dict[str, Any]:
        """For a line of results."""
        return asdict(self)

    def settings(self, work: Path) -> list[str]:
        """Of `wardround simulate`: what its command line is given."""
        length = [f"data.max_length={FIXED}"] if self.lengths == str(FIXED) else []
        return [
            *MODELS[self.model], *length, f"data.source={{path: {work}/train.jsonl}}", "data.test=null",
            "data.site_column=hospital", "data.unit_column=null", "data.validation_fraction=0",
            "partition.kind=natural", "~partition.options", "model.dropout='off'", "local.epochs=null",
            f"++local.steps={STEPS}", f"local.batch_size={self.batch}", "local.max_grad_norm=null",
            "strategy=fedavg", "strategy.weighting=uniform", "simulation.together=1", "secure.mode=off",
            "encoding.bits=32", "evaluation.every=null",
            f"rounds.rounds={self.rounds}", f"release.every={self.rounds}",
        ]  # fmt: skip

    def write(self, folder: Path) -> Work:
        """Choose the rows, let our code read and batch them, and put down what it makes of them."""
        folder.mkdir(parents=True)
        chosen, held = self._rows()
        named = [{**row, "hospital": f"site_{n // ROWS:04}"} for n, row in enumerate(chosen)]
        _write_lines(folder / "train.jsonl", named)
        prepared = prepare(parsed(self.settings(folder)))
        bench, plan = prepared.bench, prepared.plan
        arm, _ = encode_all(prepared, EventStream())
        batches = np.array(
            [
                [
                    plan_batches(
                        ROWS, plan.local, generator(plan.seed, Purpose.SHUFFLE, round=round, site=site)
                    )
                    for site in sorted(arm.sites)
                ]
                for round in range(1, self.rounds + 1)
            ],
            dtype=np.int32,
        )
        sites = [arm.sites[name].training for name in sorted(arm.sites)]
        assert [len(rows) for rows in sites] == [ROWS] * self.sites
        everything = [row for rows in sites for row in rows]
        assert all(bench.task.targets(row) > 0 for row in everything), "a row has no target"
        if self.lengths != "ragged":
            assert {row.length for row in everything} == {FIXED}
        _packed(everything).write(folder / "rows.npz")
        _packed(self._encoded(bench, folder, held)).write(folder / "held.npz")
        np.savez(folder / "plan.npz", sites=np.arange(self.sites + 1) * ROWS, batches=batches)
        bench.load_adapter(prepared.initial)
        bench.method.save(bench.model, folder / "initial", "base")
        (folder / "work.json").write_text(
            json.dumps(
                {
                    "base": str(locate(prepared.config.model.path)), "classes": len(plan.data.labels),
                    "pad": max(bench.data.pad_token_id, 0), "learning_rate": plan.local.learning_rate,
                    "layout": [spec.name for spec in bench.layout.tensors], **self.record,
                }
            )
        )  # fmt: skip
        return Work.read(folder)

    def _encoded(self, bench: Workbench, folder: Path, rows: list[dict[str, Any]]) -> list[EncodedText]:
        """The rows that are held back, as a site's own."""
        _write_lines(folder / "held.jsonl", [{**row, "hospital": "held"} for row in rows])
        settings = self.settings(folder)
        place = settings.index(f"data.source={{path: {folder}/train.jsonl}}")
        settings[place] = f"data.source={{path: {folder}/held.jsonl}}"
        prepared = prepare(parsed([*settings, f"data.limit={HELD}"]))
        assert prepared.bench.base.digest == bench.base.digest
        arm, _ = encode_all(prepared, EventStream())
        (site,) = arm.sites.values()
        return [row for row in site.training if bench.task.targets(row) > 0]  # type: ignore[misc]  # rows of texts

    def _rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the sites, and those that nobody trains on, as the set's files have them."""
        rows = list(_lines(SETS[self.model], "train"))
        held = list(_lines(SETS[self.model], "test"))
        np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]  # numpy takes a list
        if self.lengths != "ragged":
            rows, held = (self._long(part) for part in (rows, held))
        wanted = self.sites * ROWS
        assert len(rows) >= wanted, f"{SETS[self.model]} has {len(rows)} such rows, not {wanted}"
        return rows[:wanted], held[:HELD]

    def _long(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows that have more than 64 tokens and will be cut: of sentences several of one class in a row."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(locate(_path(self.model)))

        def tokens(text: str) -> int:
            return len(tokenizer(text, verbose=False)["input_ids"])

        if self.model == "med_llama":
            return [
                row
                for row in rows
                if tokens(row["question"]) <= MOST_PROMPT
                and tokens(row["question"] + row["answer"]) >= FIXED + 2
            ]
        joined: list[dict[str, Any]] = []
        open_rows: dict[str, dict[str, Any]] = {}
        for row in rows:
            before = open_rows.pop(row["label"], None)
            text = row["text"] if before is None else f"{before['text']} {row['text']}"
            both = {**row, "text": text}
            if tokens(text) >= FIXED:
                joined.append(both)
            else:
                open_rows[row["label"]] = both
        return joined


def _path(model: str) -> str:
    return parsed([*MODELS[model]]).model.path


def _lines(name: str, part: str) -> Iterator[dict[str, Any]]:
    with gzip.open(locate(f"data://data/{name}/{part}.jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _packed(rows: Sequence[Any]) -> Rows:
    return Rows(
        np.concatenate([row.tokens for row in rows]),
        np.concatenate([row.targets for row in rows]),
        np.cumsum([0, *(row.length for row in rows)]),
        np.array([row.label for row in rows], dtype=np.int64),
    )


def held_out_loss(work: Work, tensors: dict[str, Any]) -> float:
    """Mean loss of the rows that nobody trains on, in float32 whoever trained; nats a row or target token."""
    import torch

    model = load_model(work).eval()
    put(model, {name: torch.from_numpy(np.array(tensors[saved_name(name)])) for name in trained(model)})
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(work.held), 20):
            batch = work.held.batch(np.arange(start, min(start + 20, len(work.held))), work.settings["pad"])
            labels = batch["labels"]
            terms = len(labels) if labels.ndim == 1 else int((labels[:, 1:] >= 0).sum())
            total += float(loss_of(model, batch)) * terms
            count += terms
    return total / count


def initial_of(work: Work) -> dict[str, Any]:
    """The adapter that everybody begins with, by PEFT's names, in the order of our flat vector."""
    tensors = load_file(work.folder / "initial" / "adapter_model.safetensors")
    return {name: tensors[name] for name in work.settings["layout"]}
