"""A fetched result as PEFT's own files, and merged into this site's base model; proven on its rows.

Where each site ends with an adapter of its own, that one is meant throughout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wardround.client.fetching import Fetched
from wardround.client.local_data import open_bench, read_rows
from wardround.client.site_settings import SiteSettings
from wardround.core.errors import ModelError
from wardround.runtime.files import atomic_folder
from wardround.training.merge import MergeReport, merge_adapter

ADAPTER: Final = "adapter"
SAMPLES: Final = 16
"""Rows that the merged model and the adapter on its base are both asked."""


def save_adapter(settings: SiteSettings, fetched: Fetched) -> Path:
    """Write the adapter as PEFT reads it: the released one, or this site's own.

    Raises:
        UnreadyError: This site does not have the plan's base model any more.
        StorageError: It cannot be written.
    """
    plan = fetched.plan.plan
    bench = open_bench(settings, plan)
    bench.load_adapter(fetched.adapter)
    with atomic_folder(fetched.folder / ADAPTER, replace=True) as folder:
        bench.method.save(bench.model, folder, bench.base.name, plan.base)
    return fetched.folder / ADAPTER


def merge_result(settings: SiteSettings, fetched: Fetched, site: str, output: Path) -> MergeReport:
    """Merge the adapter into this site's base model.

    Args:
        settings: Of the site: where base model and rows lie.
        fetched: The result.
        site: Its name.
        output: Folder to make.

    Raises:
        ConfigError: `output` holds something already.
        ModelError: The merged model does not answer as the adapter on its base; nothing is left.
        UnreadyError: Base model or rows are not there any more.
    """
    plan = fetched.plan.plan
    adapter = save_adapter(settings, fetched)
    bench = open_bench(settings, plan)
    examples = read_rows(settings, plan, site).examples[:SAMPLES]
    alone = plan.data.model_copy(update={"packing": False})
    samples = bench.task.encode(examples, bench.tokenizer, alone, plan.task)
    report = merge_adapter(
        adapter, bench.base.config, bench.method, bench.task, plan.data, output, samples=samples
    )
    if not report.passed:
        raise ModelError(
            "the merged model is not the adapter on its base; nothing was written", found=report.reason,
            expected=f"logits within {report.tolerance:.3g}, relative to the largest",
        )  # fmt: skip
    return report
