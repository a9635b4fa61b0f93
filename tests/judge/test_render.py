"""The drawn reports: self-contained, escaped, the same bytes twice, thumbnails only when wanted."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest

from thoraclip.errors import ImageError
from thoraclip.judge import figures
from thoraclip.judge.report import MethodResult, judge, write_report
from thoraclip.labels import LabelSet
from thoraclip.tables.predictions import Predictions

NASTY = ('<b>&"x"', "a|b $c$ _d_ `e`", "</style><script>alert(1)</script>")


def _study() -> dict[str, Any]:
    n, rng = 90, np.random.default_rng(0)
    truth = (np.arange(n) % 3).astype(np.int64)
    tables = [rng.dirichlet(np.ones(3), size=n) + np.eye(3)[truth] * k for k in (0.2, 0.9)]
    ids = tuple(f"<i>{i}</i>.png" for i in range(n))
    made = [
        Predictions(
            LabelSet(NASTY), ids, truth, s / s.sum(axis=1, keepdims=True), (None,) * n, (None,) * n, (None,) * n
        )
        for s in tables
    ]
    first = MethodResult(
        name='probe <img src="x">', kind="probe", predictions=(made[0],), settings={"model": "m<1>", "extra|": "v"},
        notes=("n <o> te",), details={"per_prompt": [{"prompt": "<p>", "class": "c", "accuracy": 0.5}], "more": {"k": 1}},
    )  # fmt: skip
    broken = MethodResult(name="broken", kind="baseline", failed="<oops>")
    return judge(
        [first, MethodResult(name="b", kind="probe", predictions=(made[1], made[0])), broken], title="T <i>", resamples=100,
        dataset={"name": "<d>"}, provenance={"versions": {"x": "<1>"}}, published=[{"name": "<pub>", "accuracy": 0.9244}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return _study()


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    if path.name == "broken.png":
        raise ImageError("broken.png: cannot be decoded <x>")
    return np.full((300, 200), 90, dtype=np.uint8)


def _paths(study: dict[str, Any]) -> dict[str, Path]:
    mistakes = next(m for m in study["methods"] if m["name"] == study["verdict"]["best"])["mistakes"]
    return {row["image_id"]: Path("broken.png" if k == 0 else "fine.png") for k, row in enumerate(mistakes)}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(folder: Path) -> _Reader:
    reader = _Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_the_page_is_well_formed_escaped_and_asks_for_nothing(study: dict[str, Any], tmp_path: Path) -> None:
    write_report(study, tmp_path, image_paths=_paths(study), load=_pixels)
    reader = _read(tmp_path)
    assert not {"script", "link", "iframe", "b", "i", "object", "base", "d", "p1"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "action", "data"}:
                assert (value or "").startswith(("#", "data:image/jpeg;base64,")), (tag, name, value)
    style = "".join(re.findall(r"<style.*?</style>", (tmp_path / "report.html").read_text(), flags=re.DOTALL))
    assert "@import" not in style and "url(" not in style
    for text in (
        *NASTY,
        'probe <img src="x">',
        "Research use only, not for diagnosis.",
        "<pub>",
        "<oops>",
        "<p>",
        "T <i>",
    ):
        assert text in reader.text, text
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_it_can_be_read_without_eyes(study: dict[str, Any], tmp_path: Path) -> None:
    write_report(study, tmp_path, image_paths=_paths(study), load=_pixels)
    tags = _read(tmp_path).tags
    assert dict(tags)["html"] == {"lang": "en"}
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    assert all(a.get("scope") for tag, a in tags if tag == "th")
    assert sum(tag == "svg" for tag, _ in tags) == sum(
        a.get("role") == "img" and bool(a.get("aria-label")) for _, a in tags
    )


def test_thumbnails(study: dict[str, Any], tmp_path: Path) -> None:
    for name, options in {"with": {}, "without": {"thumbnails": False}}.items():
        write_report(study, tmp_path / name, image_paths=_paths(study), load=_pixels, **options)
    write_report(study, tmp_path / "unknown", load=_pixels)
    images = {
        name: sum(tag == "img" for tag, _ in _read(tmp_path / name).tags) for name in ("with", "without", "unknown")
    }
    assert images == {"with": len(_paths(study)) - 1, "without": 0, "unknown": 0}
    assert "cannot be decoded <x>" in _read(tmp_path / "with").text


def test_same_bytes_twice_and_no_trace_in_the_settings(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        study = _study()
        write_report(study, tmp_path / name, image_paths=_paths(study), load=_pixels)
    assert dict(matplotlib.rcParams) == before
    for file in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_markdown_tables_hold_together(study: dict[str, Any], tmp_path: Path) -> None:
    write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<b>" not in text and "<script" not in text and "92.4" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_class_names_in_figures_are_no_formulas(study: dict[str, Any]) -> None:
    text = re.sub(r"<!--.*?-->", "", figures.confusion_figure(study["methods"][0], study["classes"]), flags=re.DOTALL)
    assert "a|b $c$ _d_ `e`" in text and "&lt;b&gt;&amp;" in text


def test_numbers_are_percentages_with_one_decimal(study: dict[str, Any], tmp_path: Path) -> None:
    write_report(study, tmp_path)
    estimate = next(m for m in study["methods"] if m["name"] == "b")["metrics"]["accuracy"]
    expected = "{value:.1f} [{low:.1f}, {high:.1f}]".format(**{k: 100 * estimate[k] for k in ("value", "low", "high")})
    assert expected in (tmp_path / "report.md").read_text() and expected in _read(tmp_path).text


def test_judge_runs_where_torch_cannot_be_imported() -> None:
    program = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "peft", "accelerate"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import thoraclip.judge.report
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
