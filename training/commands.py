"""Commands that need no federation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import DataContract, TaskSpec, TextTemplate
from wardround.runtime.locations import locate
from wardround.training.data_check import EncodeLengths, Reading, ReadRow, check_source
from wardround.training.data_report import print_report
from wardround.training.source_spec import named_source, source_of

if TYPE_CHECKING:
    from wardround.training.processors import Processor


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
    columns: Mapping[str, str] | None = None,
    text_format: str | None = None,
    template: Sequence[str] = (),
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
        columns: Role → column, as `data.columns`: what a text format asks for.
        text_format: Text format of a language model (`training/text_formats/`) in which rows are read and
            measured, chat template and end token included; None measures the text alone.
        template: Segments of a template that builds the text, as `data.template.segments`.

    Raises:
        DataError: Nothing readable there, or a column that is not there.
        ConfigError: A tokenizer without a text to measure, a text given twice, a length below 2, or an
            unknown text format.
        ModelError: No tokenizer there.
    """
    if tokenizer is not None and text is None and text_format is None and not template:
        raise ConfigError(
            "lengths in tokens need a text",
            remedy="name its column with --text, or how rows become one with --format or --template",
        )
    if template and text is not None:
        raise ConfigError(
            "the text is given twice", found="a column and a template", remedy="keep one of them"
        )
    if max_length < 2:  # noqa: PLR2004 - as DataContract.max_length
        raise ConfigError(f"--max-length is {max_length}", expected="at least 2")
    named = {role: column for role, column in (("text", text), ("label", label)) if column is not None}
    data = DataContract(
        columns={**(columns or {}), **named},
        template=TextTemplate(segments=tuple(template)) if template else None,
        id_column=row_id,
        unit_column=unit,
        max_length=max_length,
    )
    place = named_source(source, kind)
    if kind is None:
        source_of(locate(source))  # before a tokenizer is loaded, which takes seconds
    if text_format is None:
        lengths = None if tokenizer is None else tokenizer_lengths(tokenizer)
        report = check_source(place, data, encode_lengths=lengths)
    else:
        roles = format_roles(text_format) | ({"label": True} if "label" in data.columns else {})
        read_row = format_reader(text_format, tokenizer)
        report = check_source(place, data, roles, read_row=read_row)
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        print_report(report, Console())


def format_roles(name: str) -> dict[str, bool]:
    """Roles of a text format → whether it needs them.

    Raises:
        ConfigError: There is no such format.
    """
    from wardround.training.text_formats import FORMATS

    return dict(FORMATS.get(name).roles)


def format_reader(name: str, tokenizer: str | None, options: Mapping[str, Any] | None = None) -> ReadRow:
    """Reads rows as the language model's task does, nothing cut; lengths only with a tokenizer.

    Args:
        name: Text format.
        tokenizer: Model folder or hub name, or None.
        options: The task's other options, such as a plan's.

    Raises:
        ConfigError: There is no such text format.
        ModelError: No tokenizer there, or it has no chat template or end token and the format needs one.
    """
    from wardround.training.chat_spans import require_template
    from wardround.training.tasks.causal_lm import TASK
    from wardround.training.tasks.contract import Example
    from wardround.training.text_formats import FORMATS

    spec = TaskSpec(name=TASK.name, options={**(options or {}), "format": name}, metrics=TASK.metric_family)
    loaded = None if tokenizer is None else read_tokenizer(tokenizer, remedy="correct --tokenizer")
    chat = FORMATS.get(name).needs_chat_template
    if loaded is not None and chat:
        require_template(loaded)
    uncut = DataContract(columns={}, max_length=sys.maxsize)

    def read_row(roles: Mapping[str, Any]) -> Reading:
        example = Example(0, dict(roles))
        fault = TASK.fault(example, spec)
        if fault is not None or loaded is None:
            return Reading(fault)
        try:
            (row,) = TASK.encode([example], loaded, uncut, spec)
        except ModelError:
            if not chat:
                raise  # the tokenizer does not suit the format, whatever the row
            return Reading("refused_by_chat_template")
        return Reading(tokens=row.length)

    return read_row


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
    from wardround.training.processors import TOKENIZER

    return read_processor(TOKENIZER, path, revision, remedy=remedy)


def read_processor(processor: Processor, path: str, revision: str | None = None, *, remedy: str) -> Any:
    """What a task reads rows through (`task.processor`), of a model folder or hub name, without the model.

    Raises:
        ModelError: It is not there.
    """
    from wardround.training.base_model import quiet
    from wardround.training.settings import BaseModelConfig, resolve

    if not path.strip():
        raise ModelError("no model is named", found="an empty path", remedy=remedy)
    folder, name = resolve(BaseModelConfig(path=path))
    try:
        with quiet():
            return processor.load(folder, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"the tokenizer (or what else the task reads rows through) of {name!r} cannot be loaded",
            found=type(error).__name__,
            expected="a folder with tokenizer.json, or a hub name that is in the cache or can be reached",
            remedy=remedy,
        ) from error
