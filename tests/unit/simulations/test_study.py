"""Finished runs as one study: which are one variant, what their means are, and what is written of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from wardround.core.errors import ConfigError
from wardround.runtime.event_log import JsonlSink
from wardround.runtime.events import Evaluated
from wardround.simulations.compare import compare_runs
from wardround.simulations.study import Interval, find_runs, mean_curve, read_run, rows_of, variants_of
from wardround.simulations.study_report import shown


def write_run(folder: Path, *, seed: int = 0, f1: float = 0.5, tested: bool = True, **changes: Any) -> Path:
    """What a run leaves, as far as it is read; `changes` are of its configuration."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "name": "study", "seed": seed, "output": str(folder), "resume": None,
        "strategy": {"name": "fedavg", "options": {}}, "local": {"learning_rate": 1e-3},
        "machine": {"threads": seed + 1, "precision": "fp32"},
        "release": {"metric": "macro_f1", "direction": "max"},
    }  # fmt: skip
    for section, values in changes.items():
        config[section] = {**config[section], **values} if isinstance(values, dict) else values
    test = {"test": {"values": {"loss": 1 - f1, "macro_f1": f1}}} if tested else {}
    arms = {"federated": {"test": test, "released_round": 2, "wall_s": 3.5}}
    if tested:
        arms["centralised"] = {"test": {"test": {"values": {"loss": 0.2, "macro_f1": 0.8}}}, "wall_s": 1.0}
    summary = {"arms": arms, "traffic": {"bytes_up_a_site": 2048, "bytes_down_a_site": 1024}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    sink = JsonlSink(folder / "metrics.jsonl")
    for round, value in ((1, f1 - 0.2), (2, f1 - 0.1)):
        values = {"loss": 1 - value, "macro_f1": value}
        sink.emit(Evaluated("federated", round, "validation", values, {"loss": 9, "macro_f1": 9}))
    sink.close()
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two strategies with three seeds each."""
    for index, (strategy, base) in enumerate((("fedavg", 0.5), ("tangent", 0.6))):
        for seed in range(3):
            write_run(
                tmp_path / f"sweep/{3 * index + 2 - seed}", seed=seed, f1=base + 0.01 * seed,
                strategy={"name": strategy},
            )  # fmt: skip
    return tmp_path / "sweep"


def test_runs_that_differ_in_their_seed_are_one_variant(sweep: Path) -> None:
    """Machine and folder tell none apart; the mean has Student's interval."""
    variants = variants_of([read_run(folder) for folder in find_runs([sweep])])
    assert [variant.label for variant in variants] == ["strategy=fedavg", "strategy=tangent"]
    assert [[run.seed for run in variant.runs] for variant in variants] == [[0, 1, 2]] * 2
    found = variants[1].interval("federated", "macro_f1")
    assert found is not None
    assert found.values == pytest.approx((0.6, 0.61, 0.62))
    # t of 0.975 and two degrees of freedom is 4.3027 (any table); s = 0.01.
    assert found.mean == pytest.approx(0.61)
    assert found.high - found.mean == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert shown(found) == "0.6100 ± 0.0248"
    assert shown(Interval.of([0.5])) == "0.5000"
    assert variants[0].arms() == ["federated", "centralised"]


def test_curves_are_means_of_rounds_that_all_runs_were_scored_in(sweep: Path) -> None:
    """By round, on the validation parts."""
    variants = variants_of([read_run(folder) for folder in find_runs([sweep])])
    curve = mean_curve(variants[0], "macro_f1")
    assert {round: found.mean for round, found in curve.items()} == pytest.approx({1: 0.31, 2: 0.41})


def test_names_are_as_short_as_they_may_be(tmp_path: Path) -> None:
    """Two settings of one last word keep the word before it; a value may be anything that YAML has."""
    write_run(
        tmp_path / "a", strategy={"options": {"momentum": 0.5}}, local={"momentum": 0.1, "ranks": [1, 2]}
    )
    write_run(tmp_path / "b", strategy={"options": {"momentum": 0.9}}, local={"momentum": 0.2, "ranks": []})
    one, _ = variants_of([read_run(folder) for folder in find_runs([tmp_path])])
    assert one.label == "options.momentum=0.5, local.momentum=0.1, ranks=[1, 2]"


def test_what_follows_from_another_setting_is_not_named(tmp_path: Path) -> None:
    """An option that one strategy alone has; unless it is what tells runs apart."""
    write_run(tmp_path / "a", strategy={"name": "fedavg", "options": {"proximal": 0.0}})
    for name, split in (("b", "even"), ("c", "rows")):
        options = {"proximal": 0.0, "split": split}
        write_run(tmp_path / name, strategy={"name": "tangent", "options": options})
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    assert [v.label for v in variants_of(runs[:2])] == ["strategy=fedavg", "strategy=tangent"]
    labels = [variant.label for variant in variants_of(runs)]
    assert labels == [
        "strategy=fedavg, split=null",
        "strategy=tangent, split=even",
        "strategy=tangent, split=rows",
    ]


def test_a_run_without_test_rows_counts_by_its_released_round(tmp_path: Path) -> None:
    """Said so in every table."""
    run = read_run(write_run(tmp_path / "run", tested=False, f1=0.7))
    assert run.scored_on == "validation"
    assert run.scores == {"federated": {"loss": pytest.approx(0.4), "macro_f1": pytest.approx(0.6)}}
    assert [row["scored_on"] for row in rows_of(variants_of([run]))] == ["validation"]


def test_everything_is_written_and_read_back(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row a run and arm, the same in both tables; a page with its picture in it and no other address."""
    out = tmp_path / "out"
    compare_runs([sweep], out)
    printed = capsys.readouterr().out
    assert "6 runs" in printed
    assert "everybody's test rows" in " ".join(printed.split())
    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["strategy.name"] for row in rows} == {"fedavg", "tangent"}
    again = parquet.read_table(out / "runs.parquet").to_pylist()
    assert [row["macro_f1"] for row in again] == pytest.approx([float(row["macro_f1"]) for row in rows])
    assert {row["bytes_up_a_site_and_round"] for row in again if row["arm"] == "federated"} == {2048}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "0.6100 ± 0.0248" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_virtual_time_stands_where_a_run_has_any(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In every table a mean of the federation; no column of it where nobody has any."""
    for name in ("plain", "timed"):
        if name == "timed":
            for number in (0, 1, 2):
                path = sweep / str(number) / "summary.json"
                found = json.loads(path.read_text()) | {"virtual": {"seconds": 60.0 * (number + 4)}}
                path.write_text(json.dumps(found))
        compare_runs([sweep], tmp_path / name)
        shown, timed = capsys.readouterr().out, name == "timed"
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        assert ("virtual time" in page) is timed
        assert ("5.0 min" in page) is timed
        assert ("5.0 min" in shown) is timed
        with (tmp_path / name / "runs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert ("virtual_s" in rows[0]) is timed
        told = [row["virtual_s"] for row in rows if row.get("virtual_s")]
        assert sorted(told) == (["240.0", "300.0", "360.0"] if timed else [])


def test_what_a_name_holds_is_no_markup(tmp_path: Path) -> None:
    """A value comes from a file that anybody may have written."""
    for index, name in enumerate(("<script>x</script>", "b")):
        write_run(tmp_path / f"in/{index}", strategy={"name": name})
    compare_runs([tmp_path / "in"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    """Nothing there, no run in it, the same run twice, a damaged one, a metric that nobody has."""
    with pytest.raises(ConfigError, match="is not there"):
        find_runs([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no finished run"):
        find_runs([tmp_path / "empty"])
    one = write_run(tmp_path / "one")
    write_run(tmp_path / "two")
    with pytest.raises(ConfigError, match="the same, to the seed"):
        variants_of([read_run(tmp_path / "one"), read_run(tmp_path / "two")])
    with pytest.raises(ConfigError, match=r"(?s)unknown metric 'f1'.*macro_f1"):
        compare_runs([one], tmp_path / "out", "f1")
    assert not (tmp_path / "out").exists()
    (one / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the folder of a finished run"):
        read_run(one)
    (one / "summary.json").write_text("[")
    with pytest.raises(ConfigError, match="not the folder of a finished run"):
        read_run(one)
