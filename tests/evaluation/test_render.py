"""The drawn reports: self-contained, escaped, the same bytes twice, thumbnails only when wanted."""

from __future__ import annotations

import base64
import copy
import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from thoraclip.errors import ImageError
from thoraclip.evaluation import drawing, figures
from thoraclip.evaluation.render import escape_latex, latex_table, markdown_page
from thoraclip.evaluation.report import MethodResult, judge, write_report
from thoraclip.labels import LabelSet
from thoraclip.tables.predictions import Predictions

NASTY = ('<b>&"x"', "a|b $c$ _d_ `e`", "</style><script>alert(1)</script>")
PUBLISHED = [
    {"name": "<pub>", "accuracy": 0.9244},
    {"name": "of_b", "of": "b", "accuracy": 0.878, "macro_f1": 0.8778, "macro_recall": 0.88, "source": "A & B, 50 %"},
    {"name": "again", "of": "b", "accuracy": 0.5, "note": "<x> {y}"},
    {"name": "of a failed one", "of": "broken", "macro_f1": 0.1234},
]


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
        [first, MethodResult(name="b", kind="probe", predictions=(made[1], made[0])), broken], title="T <i> 5 %", resamples=100,
        dataset={"name": "<d>"}, provenance={"versions": {"x": "<1>"}}, published=PUBLISHED,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return _study()


@pytest.fixture(scope="module")
def written(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's pages, with the images of its mistakes."""
    folder, before = tmp_path_factory.mktemp("report"), dict(matplotlib.rcParams)
    write_report(study, folder, image_paths=_paths(study), load=_pixels)
    assert dict(matplotlib.rcParams) == before
    return folder


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


def test_the_page_is_well_formed_escaped_and_asks_for_nothing(written: Path) -> None:
    reader = _read(written)
    assert not {"script", "link", "iframe", "b", "i", "object", "base", "d", "p1", "metadata"} & {
        tag for tag, _ in reader.tags
    }
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "action", "data"}:
                assert (value or "").startswith(("#", "data:image/jpeg;base64,")), (tag, name, value)
    style = "".join(re.findall(r"<style.*?</style>", (written / "report.html").read_text(), flags=re.DOTALL))
    assert "@import" not in style and "url(" not in style
    said = (*NASTY, 'probe <img src="x">', "Research use only, not for diagnosis.", "<pub>", "<oops>", "<p>", "T <i>")
    assert [text for text in said if text not in reader.text] == []
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_it_can_be_read_without_eyes(written: Path) -> None:
    tags = _read(written).tags
    assert dict(tags)["html"] == {"lang": "en"}
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    assert all(a.get("scope") for tag, a in tags if tag == "th")
    assert sum(tag == "svg" for tag, _ in tags) == sum(
        a.get("role") == "img" and bool(a.get("aria-label")) for _, a in tags
    )


def test_thumbnails_only_where_wanted_and_else_the_same_bytes_twice(written: Path, tmp_path: Path) -> None:
    again, page = _study(), _read(written)
    with matplotlib.rc_context({"grid.linestyle": ":", "axes.facecolor": "black"}):  # a user's own settings
        write_report(again, tmp_path, image_paths=_paths(again), load=_pixels, thumbnails=False)
    for file in ("report.json", "report.md", "report.tex"):
        assert (tmp_path / file).read_bytes() == (written / file).read_bytes()
    assert sum(tag == "img" for tag, _ in page.tags) == len(_paths(again)) - 1 and "cannot be decoded <x>" in page.text
    pictures = [str(a["src"]).partition(",")[2] for tag, a in page.tags if tag == "img"]
    assert {Image.open(io.BytesIO(base64.b64decode(text))).size for text in pictures} == {(85, 128)}
    assert "img" not in dict(_read(tmp_path).tags)
    svg = [re.findall(r"<svg.*?</svg>", (f / "report.html").read_text(), flags=re.DOTALL) for f in (tmp_path, written)]
    assert svg[0] == svg[1] != []


def test_markdown_tables_hold_together(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    assert "<b>" not in text and "<script" not in text and "92.4" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
        assert "| ---" in block, "a row that fell out of its table"


def test_class_names_in_figures_are_no_formulas(study: dict[str, Any]) -> None:
    text = re.sub(r"<!--.*?-->", "", figures.confusion_figure(study["methods"][0], study["classes"]), flags=re.DOTALL)
    assert "a|b $c$ _d_ `e`" in text and "&lt;b&gt;&amp;" in text
    with warnings.catch_warnings(action="error"):
        drawn = figures.confusion_figure({"name": "a", "confusion": [[1, 0], [0, 0]]}, ["\u80ba\u708e", "b"])
    assert "\u80ba\u708e" in drawn, "letters that our own fonts lack are the reader's to draw"


def test_without_a_row_to_stand_beside_there_is_no_column(study: dict[str, Any]) -> None:
    old = copy.deepcopy(study)
    old["published"] = [{key: value for key, value in old["published"][0].items() if key != "of"}]  # as written before
    assert not any("Published (not" in draw(old) for draw in (markdown_page, latex_table))
    assert "92.44" in markdown_page(old)


def test_footnotes_do_not_run_out_of_marks(study: dict[str, Any]) -> None:
    text = markdown_page({**study, "published": [{**study["published"][1], "name": f"n{k}"} for k in range(28)]})
    assert "<sup>z</sup> n25;" in text and "<sup>aa</sup> n26;" in text and "<sup>bb</sup> n27;" in text


def _table_rows(text: str) -> list[list[str]]:
    """Cells of every row between the rules, a spanning cell followed by empty ones."""
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = []
    for line in re.findall(r"^ *(.*&.*) \\\\$", body, flags=re.MULTILINE):
        cells: list[str] = []
        for cell in re.split(r"(?<!\\)&", line):
            span = re.match(r"\s*\\multicolumn\{(\d+)\}", cell)
            cells += [cell.strip(), *[""] * (int(span[1]) - 1 if span else 0)]
        rows.append(cells)
    return rows


def test_the_latex_table_holds_together(study: dict[str, Any]) -> None:
    text = latex_table(study)
    assert text.startswith("% Drawn from report.json by ThoraCLIP") and r"Needs \usepackage{booktabs}" in text
    assert r"\caption{T \textless{}i\textgreater{} 5 \% (" in text and "For research use, not for diagnosis.}" in text
    plain = re.sub(r"\\[\\{}]", "", text)
    assert plain.count("{") == plain.count("}")
    rows = _table_rows(text)
    assert {len(row) for row in rows} == {len("lrrrrrrrr")} and r"\begin{tabular}{lrrrrrrrr}" in text
    names = [row[0] for row in rows]
    assert names[2:] == [
        r"\textbf{b}", r"{\scriptsize mean of 2 seeds}",
        r'probe \textless{}img src="x"\textgreater{}', "", "broken", r"\emph{majority}", "",
    ]  # fmt: skip
    assert rows[2][-2:] == [
        r"\emph{87.8}\textsuperscript{a}, \emph{50.0}\textsuperscript{b}",
        r"\emph{87.78}\textsuperscript{a}, \emph{--}\textsuperscript{b}",
    ]
    assert rows[6][1] == r"\multicolumn{6}{l}{failed}" and rows[6][-1] == r"\emph{12.34}\textsuperscript{c}"
    assert r"\textsuperscript{a} of\_b; A \& B, 50 \%; recall 88.0 \%." in text


def test_latex_prints_every_text_as_it_is() -> None:
    assert escape_latex("a & b % c _ # $ { }") == r"a \& b \% c \_ \# \$ \{ \}"
    assert escape_latex("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert escape_latex("[x]* <|>") == r"{[}x{]}{*} \textless{}\textbar{}\textgreater{}"
    assert escape_latex("Müller\n%\u200b né") == r"Müller \% né"


def test_a_name_that_is_too_long_is_cut() -> None:
    assert drawing.shorten("a\n b " * 10) == "a b a b a b a b a b a b a b a\u2026"
    assert [drawing.shorten(text, 4) for text in ("abcd", "abcde", "ab cde")] == ["abcd", "abc\u2026", "ab\u2026"]
