"""A base that knows how an abstract is told: MiniLM, trained to say where in an abstract a sentence stands.

    python benchmarks/public_pretraining.py FOLDER [KEY=VALUE ...]

Cuts the abstracts of `medabs` (needs WARDROUND_DATA) into sentences. Which fifth of its abstract a sentence
is from, or that it is the title, is its label: nobody has to give one. LoRA on every linear layer, all rows
in one place, without privacy: the texts are public, and no row of the sets that privacy is measured on is
read. FOLDER becomes the merged model (about 90 MB), and `public_texts.json` in it the sentences by which a
head's features may be normalised. `private_utility.py` begins from it where it is told to.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import quality
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from wardround.runtime.events import EventStream
from wardround.runtime.locations import locate
from wardround.runtime.sinks import RichSink
from wardround.training.merge import merge_adapter

ABSTRACTS = "data://data/medabs/train.jsonl.gz"
PARTS = ("title", "first", "second", "third", "fourth", "last")
LEAST_SENTENCES = 5
SHORTEST = 20
SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z(])")
POOLER, SMALL = "bert.pooler.dense", 0.05
PUBLIC_TEXTS, ASKED = 64, 32
TEXTS = "public_texts.json"
SETTINGS = [
    "experiment=pqa_sections", "data.unit_column=null", f"data.labels=[{','.join(PARTS)}]",
    "partition.kind=iid", "~partition.options", "+partition.options={sites: 5}", "secure.mode=off",
    "adapter.options={r: 64, alpha: 64, targets: all-linear}", "rounds.rounds=10", "release.every=1",
    "++local.epochs=0.5", "local.batch_size=32", "bounds.centralised_learning_rate=4.0e-4",
    "local.schedule.warmup=0.06", "model.dropout=off", "machine.precision=bf16", "machine.threads=1",
    "machine.microbatch_size=16",
]  # fmt: skip


def sentences() -> Iterator[tuple[str, str]]:
    """(part, sentence) of every abstract that is long enough."""
    with gzip.open(locate(ABSTRACTS), "rt", encoding="utf-8") as lines:
        for line in lines:
            pieces = [piece.strip() for piece in SENTENCE_END.split(json.loads(line)["text"])]
            title, *body = [piece for piece in pieces if len(piece) > SHORTEST]
            if len(body) < LEAST_SENTENCES:
                continue
            yield PARTS[0], title
            for place, sentence in enumerate(body):
                yield PARTS[1 + place * (len(PARTS) - 1) // len(body)], sentence


def pretrain(folder: Path, extra: list[str]) -> None:
    """Train, merge, and note the public texts."""
    rows = list(sentences())
    with tempfile.TemporaryDirectory() as place:
        table, asked = Path(place) / "sentences.jsonl", Path(place) / "asked.jsonl"
        lines = [
            json.dumps({"id": str(n), "label": part, "text": text}) for n, (part, text) in enumerate(rows)
        ]
        table.write_text("\n".join(lines), encoding="utf-8")
        asked.write_text("\n".join(lines[:ASKED]), encoding="utf-8")  # what the merge is proven on
        sources = [f"data.source.path={table}", f"data.test.path={asked}"]
        config = quality.parsed([*SETTINGS, *sources, *extra])
        bench = quality.Bench.open(config, None, EventStream())
        events = EventStream((RichSink(Console()),))
        (arm,) = bench.arms("centralised")
        _, adapter = bench.train(arm, events)
        events.close()
        work, plan = bench.prepared.bench, bench.prepared.plan
        work.load_adapter(adapter)
        saved = Path(place) / "adapter"
        work.method.save(work.model, saved, work.base.name, plan.base)
        report = merge_adapter(
            saved, config.model, work.method, work.task, plan.data, folder, samples=bench.test.everybody
        )
    if not report.passed:
        sys.exit(report.reason)
    pass_through(folder)
    texts = [text for _, text in rows[:: len(rows) // PUBLIC_TEXTS]][:PUBLIC_TEXTS]
    (folder / TEXTS).write_text(json.dumps(texts, indent=1), encoding="utf-8")
    print(f"{len(rows)} sentences; {folder}: logits differ by {report.parity.relative:.1e}")


def pass_through(folder: Path) -> None:
    """Let a head of its own read the first token's state, and not what the old head's pooler made of it.

    The pooler becomes tanh(x / 20), which is nearly a line there: what it had learnt is of the task before,
    and its tanh, pushed to its ends, has forgotten the rest. A head that is normalised by public texts does
    not see the factor.
    """
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[POOLER + ".weight"] = torch.eye(len(tensors[POOLER + ".bias"])) * SMALL
    tensors[POOLER + ".bias"] = torch.zeros_like(tensors[POOLER + ".bias"])
    save_file(tensors, file, metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    pretrain(Path(sys.argv[1]), sys.argv[2:])
