"""A report and a run print well, and what they hold is what the files and the page hold."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tests.evaluation.tables import method, predictions

import thoraclip
from thoraclip.api.results import Figure, Report, Run
from thoraclip.errors import ThoraclipError
from thoraclip.evaluation.metrics import METRICS
from thoraclip.evaluation.report import MethodResult, judge
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import write_predictions

METHODS = [
    method("weak", predictions(90, signal=0.5)),
    method("strong <b>", predictions(90, signal=3.0)),
    MethodResult(name="broken", kind="finetune", failed="no such model"),
]


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(judge(METHODS, title="Three & more", resamples=100), Path("out"))


def report_of(predictions: Any, folder: Path) -> Report:
    write_predictions(folder / "p.csv", predictions)
    return thoraclip.report(folder / "p.csv", out=folder / "report", resamples=100)


def test_a_report_is_the_content_of_its_file_and_knows_its_folder(tmp_path: Path) -> None:
    made = report_of(predictions(60), tmp_path)
    assert made == json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert isinstance(made, Report) and made.folder == tmp_path / "report"
    assert json.loads(json.dumps(made)) == made


def test_the_table_has_the_numbers_of_the_report(report: Report) -> None:
    table = report.table
    assert list(table.index) == ["strong <b>", "weak", "broken", "majority"] and table.index.name == "method"
    assert list(table["n"]) == [90, 90, 0, 90] and table.loc["broken", "kind"] == "finetune"
    assert list(table.columns) == ["kind", "n", *(f"{m}{end}" for m in METRICS for end in ("", "_low", "_high"))]
    for entry in report["methods"]:
        for metric in METRICS:
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                told, known = table.loc[entry["name"], metric + end], entry["metrics"][metric][key]
                assert np.isnan(told) if known is None else told == known
    assert table.loc["broken"].drop(["kind", "n"]).isna().all()
    assert {str(kind) for kind in table.drop(columns=["kind", "n"]).dtypes} == {"float64"}


def test_without_pandas_the_extra_is_named(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ThoraclipError, match=r"'pandas' is not installed; .* pip install 'thoraclip\[study\]'"):
        _ = report.table


def test_the_figures_are_those_of_the_page(tmp_path: Path) -> None:
    made = report_of(predictions(60), tmp_path)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert {"forest", "confusion p", "reliability p", "roc COVID-19"} <= set(made.figures)
    shown = [figure._repr_svg_() for figure in made.figures.values()]
    assert page.count("<svg") == len(shown) and all(svg in page for svg in shown)
    for svg in shown:
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg", "a file of its own"
    assert repr(made.figures["forest"]) == "Figure(name='forest')"


def test_a_figure_is_drawn_when_it_is_shown_and_once() -> None:
    drawn: list[int] = []
    figure = Figure("one", lambda: f"<svg>{drawn.append(1)}</svg>")
    assert not drawn
    assert figure.svg == figure._repr_svg_() == "<svg>None</svg>" and drawn == [1]


def test_a_report_prints_as_a_short_table(report: Report) -> None:
    lines = repr(report).splitlines()
    assert lines[0] == "Three & more: 90 images; %, with 95 % intervals"
    assert re.fullmatch(r"Method +Accuracy +Macro F1 +Precision +Recall +AUROC +ECE", lines[1])
    assert [line.split("  ")[0] for line in lines[2:6]] == ["strong <b>", "weak", "broken", "majority"]
    best = report["methods"][1]["metrics"]["accuracy"]
    low, high = (f"{100 * best[end]:.1f}" for end in ("low", "high"))
    assert f"{100 * best['value']:.1f} [{low}, {high}]" in lines[2]
    assert lines[4] == "broken      failed"
    assert lines[-1] == f"Research use only, not for diagnosis. Page: {Path('out', 'report.html')}"
    assert len(lines) == 8 and max(map(len, lines[:6])) < 140


def test_a_notebook_shows_the_table_in_its_own_colours(report: Report) -> None:
    shown = report._repr_html_()
    tree = ElementTree.fromstring(shown)
    rows = [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]
    assert rows == report.rows(), "escaped, and whole"
    assert "not for diagnosis" in shown and "has the highest macro F1" in shown
    assert not re.search(r"background|color: (?!inherit)|<script|<style", shown)


def test_a_report_of_failures_alone_still_prints() -> None:
    empty = Report(judge(METHODS[2:], title="None", resamples=100), Path("out"))
    assert "broken  failed" in repr(empty) and "failed" in empty._repr_html_()
    assert not empty.figures and list(empty.table.index) == ["broken"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Manifest]:
    root = tmp_path_factory.mktemp("run")
    phantoms = thoraclip.phantom(root / "phantoms", images=18, size=64)
    found = thoraclip.index(phantoms.root, layout="csv", csv=phantoms.root / "phantoms.csv", out=root / "m.parquet")
    folds = thoraclip.split(found.manifest, out=root / "f.parquet", folds=3)
    return thoraclip.probe(folds, out=root / "probe", model="tiny-clip", l2_steps=2), folds


def test_a_run_has_the_metrics_of_its_report(done: tuple[Run, Manifest], tmp_path: Path) -> None:
    """The spread over folds counts as that of trainings only where something was trained."""
    run, folds = done
    untrained = thoraclip.zeroshot(folds, out=tmp_path / "z", model="tiny-clip")
    report = thoraclip.report([run, untrained], out=tmp_path / "report", manifest=folds)
    assert [one.metrics for one in (run, untrained)] == [entry["metrics"] for entry in report["methods"][:2]]
    assert replace(untrained, folder=tmp_path).metrics != untrained.metrics, "without config.toml it may be trained"
    assert run.metrics["macro_f1"]["low"] < run.metrics["macro_f1"]["value"]
    accuracy = (run.predictions.scores.argmax(axis=1) == run.predictions.target).mean()
    assert run.metrics["accuracy"]["value"] == pytest.approx(accuracy)


def test_a_run_prints_and_unpacks(done: tuple[Run, Manifest]) -> None:
    run, _ = done
    lines = repr(run).splitlines()
    assert lines[0] == "probe: 18 images scored; %, with 95 % intervals"
    assert lines[2].startswith("probe   ") and lines[2].count("[") == 6
    assert lines[3] == f"Research use only, not for diagnosis. Folder: {run.folder}" and len(lines) == 4
    rows = [list(row.itertext()) for row in ElementTree.fromstring(run._repr_html_()).iter("tr")]
    assert [row[0] for row in rows] == ["Method", "probe"]
    scored, details = run
    assert scored is run.predictions and details == json.loads((run.folder / "details.json").read_text())


def test_a_run_on_images_without_labels_prints_the_reason(done: tuple[Run, Manifest]) -> None:
    run, _ = done
    bare = replace(run, predictions=replace(run.predictions, target=np.full(18, -1)))
    assert "no labelled row in split 'test'" in repr(bare) and "no labelled row" in bare._repr_html_()
    with pytest.raises(ThoraclipError, match="no labelled row"):
        _ = bare.metrics


def test_a_run_is_taken_for_its_folder(done: tuple[Run, Manifest], tmp_path: Path) -> None:
    """See also `tests/contracts/test_public.py`."""
    run, folds = done
    assert os.fspath(run) == str(run.folder)
    assert thoraclip.read_predictions(run).image_id == run.predictions.image_id
    image = folds.paths_by_id()[run.predictions.image_id[0]]
    with pytest.raises(ThoraclipError, match="'Nothing' is not one of the classes"):
        thoraclip.explain(run, image, out=tmp_path / "sheet.png", class_name="Nothing")
    with pytest.raises(ThoraclipError, match=f"adapter '{run.folder}': no adapter there"):
        thoraclip.zeroshot(folds, out=tmp_path / "z", model="tiny-clip", adapter=run)
