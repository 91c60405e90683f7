"""Commands that need no federation."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import DataContract
from wardround.training.data_check import EncodeLengths, check_source
from wardround.training.data_report import print_report
from wardround.training.source_spec import named_source


def check_data(
    source: str,
    kind: str | None,
    *,
    text: str | None,
    label: str | None,
    unit: str | None,
    row_id: str | None = None,
    tokenizer: str | None,
    max_length: int,
    as_json: bool,
) -> None:
    """Read a source and print what is in it, as tables or as JSON.

    Args:
        source: File or folder, as in a configuration.
        kind: Source kind; None chooses by the ending.
        text: Column with the text, or None.
        label: Column with the label, or None.
        unit: Column that names the unit to protect, or None.
        row_id: Column that names the row, or None.
        tokenizer: Model folder or hub name whose tokenizer measures the text, or None.
        max_length: Tokens above which a row would be cut.
        as_json: Print JSON.

    Raises:
        DataError: Nothing readable there, or a column that is not there.
        ConfigError: A tokenizer without a text column, or a length below 2.
        ModelError: No tokenizer there.
    """
    if tokenizer is not None and text is None:
        raise ConfigError("lengths in tokens need a text", remedy="name its column with --text")
    if max_length < 2:  # noqa: PLR2004 - as DataContract.max_length
        raise ConfigError(f"--max-length is {max_length}", expected="at least 2")
    columns = {role: column for role, column in (("text", text), ("label", label)) if column is not None}
    report = check_source(
        named_source(source, kind),
        DataContract(columns=columns, id_column=row_id, unit_column=unit, max_length=max_length),
        encode_lengths=None if tokenizer is None else tokenizer_lengths(tokenizer),
    )
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        print_report(report, Console())


def tokenizer_lengths(path: str) -> EncodeLengths:
    """Lengths in tokens as a model's tokenizer counts them, special tokens included.

    Raises:
        ModelError: No tokenizer there.
    """
    tokenizer = read_tokenizer(path, remedy="correct --tokenizer")

    def lengths(texts: object) -> list[int]:
        # `verbose` off: a text beyond the model's length is what we are here to count.
        encoded = tokenizer(texts, truncation=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    return lengths


def read_tokenizer(path: str, revision: str | None = None, *, remedy: str) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises:
        ModelError: No tokenizer there.
    """
    from transformers import AutoTokenizer

    from wardround.training.base_model import BaseModelConfig, quiet, resolve

    if not path.strip():
        raise ModelError("no model is named", found="an empty path", remedy=remedy)
    folder, name = resolve(BaseModelConfig(path=path))
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"the tokenizer of {name!r} cannot be loaded",
            found=type(error).__name__,
            expected="a folder with tokenizer.json, or a hub name that is in the cache or can be reached",
            remedy=remedy,
        ) from error
