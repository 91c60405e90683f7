"""What `wardround data check` says about a source, counted by hand on small tables and held on real ones."""

from __future__ import annotations

import gzip
import io
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from wardround.core.errors import ConfigError, DataError, ModelError
from wardround.core.plan import DataContract, TaskSpec, TextTemplate
from wardround.training.commands import check_data
from wardround.training.data_check import check_source
from wardround.training.data_report import Spread, print_report, spread
from wardround.training.source_spec import SourceSpec

TABLE = (
    "id,patient,label,note\n"
    "1,p1,1,chest pain\n"  # line 2
    "2,p1,0,chest pain\n"  # line 3: the text of line 2, another label
    "3,p2,1,no complaints at all\n"  # line 4
    "3,p2,1,no complaints at all\n"  # line 5: equal to line 4 in all columns
    ",,,\n"  # line 6: empty
    "5,,,x\n"  # line 7: neither unit nor label
    "6,p3,maybe,\n"  # line 8: label outside the list, no text
    "7,p3\n"  # line 9: broken
)
MAPPED = DataContract(
    columns={"text": "note", "label": "label"}, labels=("0", "1"), id_column="id", unit_column="patient",
    max_length=2,
)  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> SourceSpec:
    """The table above."""
    (tmp_path / "rows.csv").write_text(TABLE, encoding="utf-8")
    return SourceSpec(path=str(tmp_path / "rows.csv"))


def words(texts: Any) -> list[int]:
    """A tokenizer of the tests' own."""
    return [len(text.split()) for text in texts]


def test_everything_is_counted(table: SourceSpec) -> None:
    """Rows, labels, doubles, units and faults with their lines."""
    report = check_source(table, MAPPED, {"text": True, "label": True}, words)
    assert (report.rows, report.readable) == (8, 7)
    assert report.labels == {"1": 3, "0": 1, "maybe": 1}
    assert (report.labelled, report.distinct_labels, report.labels_outside) == (5, 3, 1)
    assert (report.duplicate_rows, report.duplicate_ids) == (1, 1)
    assert (report.duplicate_texts, report.conflicting_texts) == (2, 1)
    assert report.units is not None
    assert report.units.units == 3
    assert report.units.rows == Spread(least=1, median=2, p95=2, most=2)
    assert {reason: fault.first for reason, fault in report.faults.items()} == {
        "empty_row": (6,),
        "empty:unit": (7,),
        "empty:label": (7,),
        "label_not_listed": (8,),
        "empty:text": (8,),
        "wrong_number_of_fields": (9,),
    }


def test_lengths_and_what_would_be_cut(table: SourceSpec) -> None:
    """In characters and in tokens; a text of exactly the longest length is not cut."""
    report = check_source(table, MAPPED, None, words)
    assert report.characters == Spread(least=1, median=10, p95=20, most=20)
    assert report.tokens is not None
    assert report.tokens.lengths == Spread(least=1, median=2, p95=4, most=4)
    assert (report.tokens.max_length, report.tokens.cut) == (2, 2)
    assert check_source(table, MAPPED).tokens is None


def test_a_path_is_enough(table: SourceSpec) -> None:
    """Without a mapping: columns, kinds, empty and broken rows, doubles."""
    report = check_source(table)
    assert {name: column.filled for name, column in report.columns.items()} == {
        "id": 6, "patient": 5, "label": 5, "note": 5,
    }  # fmt: skip
    assert report.columns["label"].kinds == {"number as text": 4, "text": 1}
    assert set(report.faults) == {"empty_row", "wrong_number_of_fields"}
    assert (report.duplicate_rows, report.labels, report.characters, report.units) == (1, {}, None, None)


def test_kinds_of_json_values_are_told_apart(tmp_path: Path) -> None:
    """A column that mixes them shows it."""
    (tmp_path / "rows.jsonl").write_text(
        '{"a": 1}\n{"a": 1.5}\n{"a": true}\n{"a": [1]}\n'
        '{"a": {"b": 1}}\n{"a": "x"}\n{"a": "2"}\n{"a": null}\n'
    )
    report = check_source(SourceSpec(path=str(tmp_path / "rows.jsonl")))
    assert report.columns["a"].filled == 7
    assert set(report.columns["a"].kinds) == {
        "integer", "number", "truth", "list", "object", "text", "number as text",
    }  # fmt: skip


def test_labels_are_compared_as_training_compares_them(tmp_path: Path) -> None:
    """1, 1.0, "1.0" and "1" are one label."""
    (tmp_path / "rows.jsonl").write_text('{"l": 1}\n{"l": 1.0}\n{"l": "1.0"}\n{"l": "1"}\n')
    data = DataContract(columns={"label": "l"}, labels=("0", "1"))
    report = check_source(SourceSpec(path=str(tmp_path / "rows.jsonl")), data)
    assert (report.labels, report.labels_outside) == ({"1": 4}, 0)


def test_messages_and_templates_have_a_length(tmp_path: Path) -> None:
    """The contents of a conversation; the sentence that a template makes, and codes that it cannot say."""
    (tmp_path / "chat.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}]}\n'
    )
    chat = check_source(
        SourceSpec(path=str(tmp_path / "chat.jsonl")), DataContract(columns={"messages": "messages"})
    )
    assert chat.characters is not None
    assert chat.characters.most == len("abc\nde")
    (tmp_path / "codes.csv").write_text("sex,age\n1,50\n2,60\n,70\n")
    template = TextTemplate(segments=("{sex}", " of {age}"), values={"sex": {"1": "man"}})
    codes = check_source(
        SourceSpec(path=str(tmp_path / "codes.csv")), DataContract(columns={}, template=template)
    )
    assert codes.characters is not None
    assert (codes.characters.least, codes.characters.most) == (len("of 70"), len("man of 50"))
    assert codes.faults["unknown_code:sex"].first == (3,)


def test_a_template_is_measured_as_it_is_read(tmp_path: Path) -> None:
    """Codes without a word, and rows that fill no column, are faults here as well."""
    path = tmp_path / "rows.csv"
    path.write_text("sex,age\n1,60\n2,\n5,60\n,\n", encoding="utf-8")
    template = TextTemplate(segments=("Patient", " {sex}"), values={"sex": {"1": "man", "2": ""}})
    report = check_source(SourceSpec(path=str(path)), DataContract(columns={}, template=template))
    assert {reason: fault.first for reason, fault in report.faults.items()} == {
        "empty:text": (3,), "unknown_code:sex": (4,), "empty_row": (5,),
    }  # fmt: skip
    assert report.characters is not None
    assert report.characters.most == len("Patient man")


def test_blanks_are_no_text(tmp_path: Path) -> None:
    """As where examples are read: such a row would be quarantined."""
    (tmp_path / "rows.jsonl").write_text('{"note": "  ", "id": 1}\n{"note": "x", "id": 2}\n')
    report = check_source(
        SourceSpec(path=str(tmp_path / "rows.jsonl")), DataContract(columns={"text": "note"})
    )
    assert report.faults["empty:text"].first == (1,)
    assert report.columns["note"].filled == 1


def test_only_the_first_lines_are_named(tmp_path: Path) -> None:
    """Twenty of them; all are counted."""
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' + "broken\n" * 50)
    fault = check_source(SourceSpec(path=str(tmp_path / "rows.jsonl"))).faults["not_json"]
    assert (fault.rows, fault.first) == (50, tuple(range(2, 22)))


def test_a_wrong_column_is_an_error(table: SourceSpec) -> None:
    """With the nearest one, before the rest is read."""
    with pytest.raises(DataError, match="did you mean 'note'"):
        check_source(table, DataContract(columns={"text": "notes"}))


def test_an_empty_source_is_a_report(tmp_path: Path) -> None:
    """Nothing in it, and that is what it says."""
    (tmp_path / "rows.jsonl").write_text("")
    report = check_source(SourceSpec(path=str(tmp_path / "rows.jsonl")), MAPPED, None, words)
    assert (report.rows, report.characters, report.tokens, report.units) == (0, None, None, None)


@pytest.mark.parametrize("numbers", [[3], [1, 2], [5, 1, 4, 2, 3], list(range(100, 0, -1))])
def test_a_spread_is_made_of_its_numbers(numbers: list[int]) -> None:
    """Least and most are exact; the middle is the lower median."""
    found = spread(numbers)
    assert found is not None
    assert (found.least, found.most) == (min(numbers), max(numbers))
    assert found.median == statistics.median_low(numbers)
    assert found.p95 == sorted(numbers)[-(-95 * len(numbers) // 100) - 1]


def test_the_tables_show_it(table: SourceSpec) -> None:
    """Counts, faults and lines are in the print; names that look like markup stay names."""
    out = io.StringIO()
    print_report(check_source(table, MAPPED, None, words), Console(file=out, width=200))
    text = out.getvalue()
    for expected in ("chest pain", "no complaints"):
        assert expected not in text
    for expected in ("wrong_number_of_fields", "label_not_listed", "maybe", "2 above 2", "60.0 %"):
        assert expected in text


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    """A column named [red] neither paints nor breaks the table."""
    (tmp_path / "rows.jsonl").write_text('{"[red]x[/blue]": "a"}\n')
    out = io.StringIO()
    print_report(check_source(SourceSpec(path=str(tmp_path / "rows.jsonl"))), Console(file=out, width=200))
    assert "[red]x[/blue]" in out.getvalue()
    assert "No broken or empty rows." in out.getvalue()


def run_command(source: Path, **arguments: Any) -> None:
    """The command with its defaults."""
    defaults: dict[str, Any] = {
        "kind": None, "text": None, "label": None, "unit": None, "tokenizer": None, "max_length": 512,
        "as_json": True,
    }  # fmt: skip
    check_data(str(source), **{**defaults, **arguments})


def test_the_command_prints_json(
    table: SourceSpec, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With tokens as the model's tokenizer counts them, its special tokens included."""
    from transformers import AutoTokenizer

    run_command(
        Path(table.path), text="note", label="label", unit="patient", tokenizer=str(tiny_bert), max_length=8
    )
    report = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    lengths = [
        len(tokenizer(text)["input_ids"])
        for text in ("chest pain", "chest pain", "no complaints at all", "no complaints at all", "x")
    ]
    assert report["tokens"]["lengths"]["most"] == max(lengths)
    assert report["tokens"]["lengths"]["least"] == 3
    assert report["tokens"]["cut"] == sum(length > 8 for length in lengths)
    assert report["rows"] == 8


def test_the_command_prints_tables(table: SourceSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json."""
    run_command(Path(table.path), as_json=False)
    assert "wrong_number_of_fields" in capsys.readouterr().out


def test_the_command_refuses_what_cannot_be(table: SourceSpec, tmp_path: Path) -> None:
    """A tokenizer without a text, no tokenizer there, no room for a token."""
    with pytest.raises(ConfigError, match="--text"):
        run_command(Path(table.path), tokenizer="anything")
    with pytest.raises(ConfigError, match="at least 2"):
        run_command(Path(table.path), max_length=1)
    with pytest.raises(ModelError):
        run_command(Path(table.path), text="note", tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="tokenizer"):
        run_command(Path(table.path), text="note", tokenizer=str(tmp_path))


def test_a_real_set_agrees_with_a_plain_count(shared_data: Path) -> None:
    """Labels, units, lengths and doubled texts of `pqa_sections`, counted a second way."""
    path = shared_data / "data" / "pqa_sections" / "train.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    data = DataContract(columns={"text": "text", "label": "label"}, id_column="id", unit_column="pmid")
    report = check_source(SourceSpec(path=str(path)), data)
    assert report.rows == report.readable == len(rows)
    assert report.labels == dict(Counter(row["label"] for row in rows).most_common())
    assert report.units is not None
    assert report.units.units == len({row["pmid"] for row in rows})
    texts = [row["text"] for row in rows]
    assert report.duplicate_texts == len(texts) - len(set(texts))
    assert report.characters is not None
    assert report.characters.most == max(map(len, texts))
    assert (report.duplicate_ids, report.faults) == (0, {})


def checked(capsys: pytest.CaptureFixture[str], source: Path, **options: Any) -> dict[str, Any]:
    """The command's report, read back from JSON."""
    known: dict[str, Any] = {"text": None, "label": None, "unit": None, "tokenizer": None, "max_length": 24}
    check_data(str(source), None, as_json=True, **(known | options))
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "rows.jsonl"


def task_lengths(model: Path, text_format: str, rows: list[dict[str, Any]]) -> list[int]:
    """What the task itself makes of the rows, nothing cut."""
    from transformers import AutoTokenizer

    from wardround.training.tasks.causal_lm import TASK
    from wardround.training.tasks.contract import Example

    spec = TaskSpec(name=TASK.name, options={"format": text_format}, metrics="language")
    examples = [Example(number, row) for number, row in enumerate(rows)]
    data = DataContract(columns={}, max_length=10_000)
    return [row.length for row in TASK.encode(examples, AutoTokenizer.from_pretrained(model), data, spec)]


def test_conversations_are_measured_as_the_model_reads_them(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chat template and end tokens counted; what cannot be read is a fault with its line."""
    turns = [{"role": "user", "content": "Does it hurt?"}, {"role": "assistant", "content": "A little."}]
    rows: list[dict[str, Any]] = [{"messages": turns * n} for n in (1, 2, 4)]
    source = written(tmp_path, [*rows, {"messages": [{"role": "user", "content": "Hello?"}]}])
    report = checked(
        capsys, source, columns={"messages": "messages"}, text_format="messages", tokenizer=str(tiny_llama)
    )
    lengths = task_lengths(tiny_llama, "messages", rows)
    expected = Spread(least=lengths[0], median=lengths[1], p95=lengths[2], most=lengths[2])
    assert report["tokens"]["lengths"] == expected.model_dump()
    assert report["tokens"]["cut"] == sum(length > 24 for length in lengths) > 0
    assert report["faults"] == {"no_assistant_turn": {"rows": 1, "first": [4]}}


def test_a_prompt_is_measured_with_its_completion(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One length a row, end token included; without a tokenizer faults are reported all the same."""
    rows = [{"prompt": "Pain? " * n, "completion": "Yes."} for n in (1, 9)]
    lines = [{"q": row["prompt"], "a": row["completion"]} for row in rows]
    source = written(tmp_path, [*lines, {"q": "Pain?"}])
    columns = {"prompt": "q", "completion": "a"}
    options: dict[str, Any] = {"columns": columns, "text_format": "prompt_completion"}
    report = checked(capsys, source, tokenizer=str(tiny_llama), **options)
    short, long = task_lengths(tiny_llama, "prompt_completion", rows)
    assert (report["tokens"]["lengths"]["least"], report["tokens"]["lengths"]["most"]) == (short, long)
    assert short <= 24 < long
    assert report["tokens"]["cut"] == 1
    bare = checked(capsys, source, **options)
    assert bare["tokens"] is None
    assert bare["faults"] == report["faults"] == {"empty:completion": {"rows": 1, "first": [3]}}


def test_a_template_is_measured(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence that it makes of each row."""
    source = written(tmp_path, [{"age": 61, "sign": "chest pain"}, {"age": 40, "sign": "cough " * 30}])
    segments = ("A patient of {age} years.", " Sign: {sign}.")
    report = checked(capsys, source, template=segments, tokenizer=str(tiny_llama))
    assert report["characters"]["least"] == len("A patient of 61 years. Sign: chest pain.")
    assert report["tokens"]["lengths"]["most"] > 60
    assert report["tokens"]["cut"] >= 1


def test_a_text_is_not_taken_twice_and_a_format_has_a_name(tmp_path: Path, tiny_bert: Path) -> None:
    """Each mistake is one message."""
    source = str(written(tmp_path, [{"t": "x", "messages": []}]))
    known: dict[str, Any] = {"label": None, "unit": None, "max_length": 24, "as_json": True}
    with pytest.raises(ConfigError, match="given twice"):
        check_data(source, None, text="t", tokenizer=None, template=("{t}",), **known)
    with pytest.raises(ConfigError, match="did you mean 'messages'"):
        check_data(source, None, text=None, tokenizer=None, text_format="message", **known)
    with pytest.raises(ModelError, match="no chat template"):
        check_data(
            source, None, text=None, tokenizer=str(tiny_bert), text_format="messages",
            columns={"messages": "messages"}, **known,
        )  # fmt: skip
