"""Small reports, audits and figures, whole: every number, sentence, table and line is that of the files in `golden/`.

What a number must be is told by the oracles of the other files; here nothing changes without being seen, in any of
thoraclip.cards.model_card, thoraclip.evaluation.align, thoraclip.evaluation.audit, thoraclip.evaluation.audit_reading,
thoraclip.evaluation.compare,
thoraclip.evaluation.curve_figures, thoraclip.evaluation.curves, thoraclip.evaluation.drawing,
thoraclip.evaluation.entries, thoraclip.evaluation.equalised_odds, thoraclip.evaluation.external,
thoraclip.evaluation.external_reading, thoraclip.evaluation.figures, thoraclip.evaluation.intervals,
thoraclip.evaluation.predictive, thoraclip.evaluation.reading, thoraclip.evaluation.recalibration,
thoraclip.evaluation.render, thoraclip.evaluation.report, thoraclip.evaluation.report_figures,
thoraclip.evaluation.results,
thoraclip.evaluation.shortcuts, thoraclip.evaluation.subgroups, thoraclip.evaluation.trust and
thoraclip.evaluation.usefulness.

`python -m tests.evaluation.test_golden` writes the files anew (made with NumPy 2.4, SciPy 1.17, Matplotlib 3.11): read the
difference before you commit it. Numbers may differ by 1e-6, as the fits of scalings end within 1e-9; drawings are
compared by what they are asked to show, since another Matplotlib places it otherwise.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from tests.conftest import files
from tests.evaluation.cards import Config, card_of, trained
from tests.evaluation.tables import answers, audit, method, predictions

from thoraclip.evaluation import drawing, figures
from thoraclip.evaluation.audit_reading import label
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.render import write_audit
from thoraclip.evaluation.report import MethodResult, judge, plain, with_audits, write_report
from thoraclip.evaluation.shortcuts import Answers
from thoraclip.runs import write_text
from thoraclip.tables.predictions import Predictions

GOLDEN = Path(__file__).with_name("golden")


def shuffled(right: float) -> list[Answers]:
    """Of four permutations of the labels the answers of what was fitted on them."""
    found = []
    for seed in range(4):
        target = np.random.default_rng(seed).permutation(np.arange(150) % 3).astype(np.int64)
        named = {name: answers(right, target, seed) for name in ("shuffled probe", "shuffled trees")}
        found.append(Answers(target, np.arange(150), named, 3))
    return found


def reliant(folder: Path) -> None:
    """Everything that an audit can find, and all its doubts; and a control that stops the verdict."""
    doubts: dict[str, Any] = {
        "sham": {"images": 64, "largest_change": 0.4, "other_answers": 3},
        "saliency": {"method": "occlusion", "inside": [0.6, 0.7, 0.65, 0.7], "area": [0.3, 0.3, 0.35, 0.3]},
        "without_duplicates": {"left_out": 4, "images": 150, "across_parts": 1, "accuracy": 0.8,
                               "accuracy_without": 0.79, "low": 0.7, "high": 0.85},
    }  # fmt: skip
    write_audit(audit(0.7, shuffled=shuffled(1 / 3), **doubts), folder)
    stopped = audit(0.7, shuffled=shuffled(0.8), **doubts)
    controls = [f"{label(test)}: {test['words']}" for test in stopped["tests"] if test["asks"] == "control"]
    write_text(folder / "stopped.txt", "\n".join([*stopped["reading"], *controls, ""]))


def clean(folder: Path) -> None:
    """An audit that finds nothing, of which one that cannot tell."""
    low = {"method": "grad-cam", "inside": [0.1, 0.2], "area": [0.4, 0.5]}
    write_audit(audit(1 / 3, n=600, lungs={}, saliency=low), folder)
    few = {"method": "grad-cam", "inside": [0.1, 0.9], "area": [0.4, 0.5]}
    write_audit(audit(1 / 3, n=60, has_masks=False, saliency=few), folder / "few")


def folds(table: Predictions, **columns: Any) -> Predictions:
    """Three folds by patient; every seventh patient is unknown."""
    patient = tuple(None if i % 7 == 3 else p for i, p in enumerate(table.patient))
    fold = tuple(i % 3 if p is None else int(p[1:]) % 3 for i, p in enumerate(patient))
    return replace(table, patient=patient, fold=fold, **columns)


def coarse(table: Predictions) -> Predictions:
    """Scores in steps of a tenth, so that many are equal."""
    scores = np.round(table.scores * 10) / 10 + 0.01
    return replace(table, scores=scores / scores.sum(axis=1, keepdims=True))


def study(folder: Path) -> None:
    """Two networks, one with two seeds, trees and a failure, in three folds; validation scores, external sets, groups of
    patients of which one is small, and a stated prevalence."""
    targets = np.array([-1, -1, *(np.arange(82) % 3)])
    tables = [
        folds(predictions(signal=s, seed=k, targets=np.maximum(targets, 0), patients=28), target=targets)
        for k, s in enumerate((2.2, 2.0, 0.8, 0.4))
    ]
    vals = [
        tuple(replace(predictions(48, signal=1.1, seed=10 * k + f, prefix=f"v{f}-"), fold=(f,) * 48) for f in (2, 0, 1))
        for k in range(3)
    ]
    few = [np.flatnonzero(vals[2][0].target != 2), np.arange(15), np.arange(16)]
    tuned: dict[str, Any] = {
        "kind": "finetune", "seeds": (7, 8), "validation": tuple(vals[:2]), "notes": ("A note.",),
        "settings": {"model": "tiny-clip", "geometry": "squash", "rate": "0.1"},
    }  # fmt: skip
    probe: dict[str, Any] = {
        "validation": (tuple(table.take(rows) for table, rows in zip(vals[2], few, strict=True)),),
        "details": {"chosen": [{"fold": 0, "step": np.int64(4), "loss": np.nan}]},
    }  # fmt: skip
    methods = [
        method("trees", coarse(tables[3]), kind="trivial", seeds=(0,)),
        method("tuned", *tables[:2], **tuned),
        method("probe", coarse(tables[2]), **probe),
        MethodResult(name="blip", kind="caption", failed="out of memory", settings={"model": "blip"}),
    ]
    published = [
        {"name": "theirs", "of": "tuned", "accuracy": 0.9244, "macro_recall": 0.878, "source": "A 2024", "note": "new"},
        {"name": "again", "of": "blip", "macro_f1": 0.5}, {"name": "apart", "macro_precision": 0.25},
    ]  # fmt: skip
    outside = [predictions(60, signal=0.9 - k / 10, seed=5 + k, prefix="o", patients=35) for k in range(2)]
    chance = replace(outside[0], scores=outside[0].scores[::-1])
    external = [
        ExternalResult(
            name="clinic", note="A note.", splits=("test",), patients_shared=4, images_of_shared=6,
            methods=(method("probe", *outside), method("tuned", chance, kind="finetune")),
            left_out={"identical": 3, "near": 0, "unreadable": 2, "moved": 1},
        ),
        ExternalResult(
            name="abroad", methods=(method("probe", predictions(seed=7, targets=[0, 2, 2] * 9)),),
            not_scored={"tuned": "keeps no model"},
        ),
        ExternalResult(name="none", not_scored={"tuned": "keeps no model"}),
    ]  # fmt: skip
    owners = dict(zip(tables[0].image_id, tables[0].patient, strict=True))
    groups = {
        "sex": {i: None if p is None else "FM"[int(p[1:]) % 2] for i, p in owners.items()},
        "view": {i: ("AP", "PA", "PA", "LL")[k % 4 if k < 20 else k % 3] for k, i in enumerate(owners)},
        "source": dict.fromkeys(owners, "one"),
    }  # fmt: skip
    report = judge(
        methods, title="A study", resamples=100, seed=1, dataset={"name": "x", "parts": [1, 2]}, provenance={"seed": 0},
        published=published, external=external, groups=groups, prevalence={"COVID-19": 0.02},
    )  # fmt: skip
    paths = {row["image_id"]: folder / "gone.png" for row in report["methods"][1]["mistakes"][:1]}
    write_report(report, folder, image_paths=paths)


def single(folder: Path) -> None:
    """One network on two classes that is always right, and its audit; rows of other splits; images are the unit."""
    table = predictions(64, signal=60, classes=("no", "yes"))
    split = tuple(("test", "test", "val", "train")[i // 2 % 4] for i in range(64))
    weak = predictions(12, signal=1, seed=8, classes=("no", "yes"))
    external = [ExternalResult(name="other", methods=(method("a", weak),))]
    report = judge([method("a", replace(table, split=split))], title="One", resamples=100, external=external)
    write_report(with_audits(report, {"a": audit(0.5, n=60)}), folder)


def poor(folder: Path) -> None:
    """Two networks that know nothing on images of one patient, and no image of one class."""
    tables = [predictions(signal=0, seed=s, targets=[0, 1, 1] * 8, patients=1) for s in (2, 3)]
    alone = ExternalResult(name="alone", methods=(method("a", predictions(9, patients=1)),))
    report = judge([method("a", tables[0]), method("b", tables[1])], title="Poor", resamples=100, external=[alone])
    write_report(report, folder)


def training(folder: Path) -> None:
    """The curves of a training, with and without a second validation."""
    rows: list[dict[str, float]] = [{"step": k, "loss": 2 - k / 10, "learning_rate": k * 1e-4} for k in range(8)]
    rows += [{"step": 0, "val_macro_f1": 0.25}, {"step": 7, "val_macro_f1": 0.5, "val_probe_macro_f1": 0.75}]
    folder.mkdir()
    figures.training_figure(rows, best_step=7, validated="zero-shot")
    figures.training_figure(rows[:-1], best_step=0, validated="forest")


def cards(folder: Path) -> None:
    """Model cards: of adapters in three folds with all that a method may add; of one class; of rows without a label."""
    chosen = [
        {"fold": 0, "step": 0, "validation": {"step": 0, "val_macro_f1": 0.5}, "scale": {"step": 3, "alpha": 0.25}},
        {"fold": 1, "step": 4, "validation": None, "nothing": None},
    ]
    added = {"what": "A *forest*.", "choice": ["One.", "Two."], "use": "Load it.", "sources": ["- Breiman 2001."]}
    url = "https://huggingface.co/datasets/owner/xrays"
    about = {"name": "X-rays", "license": "CC-BY-4.0", "url": url, "citeAs": "Doe 2024"}
    weights = {0: ["fold-0/adapter/", "fold-0/head.safetensors"], 1: ["fold-1/adapter/"], 2: []}
    config = Config(model="owner/name", adapter="runs/lora/seed-1", rate=0.2, workers=9)
    run = trained(n=60, folds=3, config=config, chosen=chosen, card=added)
    write_text(folder / "folds.md", card_of(run, files=weights, about=about))
    write_text(folder / "one-class.md", card_of(trained(present=1, patients=False), files={None: ["adapter/"]}))
    write_text(folder / "weak.md", card_of(trained(n=20, skill=0.0, present=2), base=None))
    data = run.data | {"patients": run.data["patients"] | {"unknown": 7, "patients": 40}}
    bare = replace(run, predictions=replace(run.predictions, target=np.full(60, -1)), data=data)
    write_text(folder / "unlabelled.md", card_of(bare, files=weights))


CASES: dict[str, Callable[[Path], None]] = {
    c.__name__: c for c in (reliant, clean, study, single, poor, training, cards)
}


def made(case: str) -> dict[str, str]:
    """File -> text: pages without their look and drawings, and what was drawn."""
    drawn, draw = list[dict[str, Any]](), drawing.svg
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("thoraclip.cards.model_card.RESAMPLES", 100)
        patch.setattr(drawing, "svg", lambda figure, salt: (draw(figure, salt), drawn.append(shown(figure, salt)))[0])
        CASES[case](Path(name, "out"))
        found = {f: data.decode().replace(name, "FOLDER") for f, data in files(Path(name, "out")).items()}
    hidden = re.compile(r"<(svg|style)\b.*?</\1>", flags=re.DOTALL)
    found = {file: hidden.sub(r"<\1>", text) for file, text in found.items()}
    return found | {"figures.json": json.dumps(plain(drawn))}


def shown(figure: Any, salt: str) -> dict[str, Any]:
    """Everything that a figure was asked to show, and how."""
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    return {
        "salt": salt, "inches": figure.get_size_inches(), "axes": [_panel(axes) for axes in figure.axes],
        "legends": [[one.get_frame_on(), *(t.get_text() for t in one.get_texts())] for one in legends],
    }  # fmt: skip


def _panel(axes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "limits": [*axes.get_xlim(), *axes.get_ylim()], "labels": [axes.get_xlabel(), axes.get_ylabel()],
        "aspect": axes.get_aspect(), "below": axes.get_axisbelow(),
        "spines": [name for name, spine in axes.spines.items() if spine.get_visible()],
    }  # fmt: skip
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        line = axis.get_gridlines()[0]
        found[name] = [
            [t.get_text() for t in axis.get_ticklabels()], axis.get_ticklocs(),
            axis.get_ticklines()[0].get_markersize(), line.get_visible() and [line.get_color(), line.get_linewidth()],
            axis.get_offset_text().get_text(),
        ]  # fmt: skip
    for kind in ("lines", "texts", "collections"):
        found[kind] = [
            [getattr(one, f"get_{key}")() for key in _LOOK if hasattr(one, f"get_{key}")]
            + ([one.get_paths()[0].vertices[:, 1]] if isinstance(one, PolyCollection) else [])
            for one in getattr(axes, kind)
        ]
    return found


_LOOK = (
    "xdata", "ydata", "segments", "array", "text", "position", "color", "linestyle", "linewidth", "marker",
    "markersize", "markerfacecolor", "markeredgecolor", "markeredgewidth", "label", "zorder", "fontsize", "rotation",
    "ha", "va",
)  # fmt: skip


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(where, number or text) of a JSON value."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{place}/{key}")
    else:
        yield place, value


@pytest.mark.parametrize("case", CASES)
def test_nothing_changes_unseen(case: str) -> None:
    found = made(case)
    expected = {file: data.decode() for file, data in files(GOLDEN / case).items()}
    assert sorted(found) == sorted(expected)
    for file, text in found.items():
        if not file.endswith(".json"):
            assert text.splitlines() == expected[file].splitlines(), file
            continue
        ours, theirs = (dict(leaves(json.loads(t))) for t in (text, expected[file]))
        assert list(ours) == list(theirs), file
        assert {place: v for place, v in ours.items() if not same(v, theirs[place])} == {}, file


def same(ours: Any, theirs: Any) -> bool:
    """Equal, or numbers that differ by rounding."""
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9)
    return bool(ours == theirs)


def _short(value: Any) -> Any:
    """Twelve digits are enough."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        for file, text in made(name).items():
            if file.endswith(".json"):
                text = json.dumps(_short(json.loads(text)), indent=1, ensure_ascii=False)
                text = re.sub(r"\[\n[^][{}]*\]", lambda m: re.sub(r"\n\s*", " ", m[0]), text) + "\n"
            place = GOLDEN / name / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
