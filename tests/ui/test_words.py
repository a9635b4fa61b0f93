"""What is said of an answer, and that nothing foreign becomes HTML."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thoraclip.deploy.server.answers import Neighbour, OnePicture
from thoraclip.deploy.server.page_words import answer_html, card_html, chance, near_html, verdict

BAD = "<img src=x onerror=alert(1)>"


def one(**told: Any) -> OnePicture:
    usual = {"index": 0, "label": "B", "scores": {"A": 0.25, "B": 0.75}, "set": ["B"], "ood": False, "ood_score": 1.0}
    return OnePicture(**{**usual, "neighbours": None, "error": None, **told})


def desk(sets: Any = None, scaling: Any = None) -> Any:
    return SimpleNamespace(classifier=SimpleNamespace(bundle=SimpleNamespace(sets=sets, scaling=scaling)))


@pytest.mark.parametrize(
    ("kept", "kind", "headline", "detail"),
    [
        (["B"], "one", "B", "B is the only class that the bundle cannot rule out."),
        (["A", "B"], "several", "The bundle abstains between A and B", "Neither can be ruled out."),
        (["A", "B", "C"], "several", "The bundle abstains between A, B and C", "None of them can be ruled out."),
        ([], "none", "Looks like no class", "The bundle rules out every class that it knows. The bars only say which is nearest."),
        (None, "absent", "Most likely B", "The bundle has no prediction sets: it does not say which classes can be ruled out."),
    ],
)  # fmt: skip
def test_a_set_in_words(kept: list[str] | None, kind: str, headline: str, detail: str) -> None:
    said = verdict(one(set=kept))
    assert (said.kind, said.headline, said.detail) == (kind, headline, detail)


@given(st.floats(0, 1))
def test_a_chance_is_never_certain(score: float) -> None:
    text = chance(score)
    assert text.endswith("\u00a0%")
    assert text not in ("0.0\u00a0%", "100.0\u00a0%")
    if text[0] not in "<>":
        assert abs(float(text[:-2]) / 100 - score) <= 0.0005 + 1e-12


def test_names_are_escaped_and_numbers_exact() -> None:
    html = answer_html(desk(), one(scores={BAD: 0.123456, "B": 0.876544}, set=[BAD], label=BAD))
    assert "<img" not in html
    assert 'data-score="0.123456"' in html and ">12.3\u00a0%<" in html
    near = near_html(one(neighbours=[Neighbour(label=BAD, similarity=0.5, picture="data:image/png;base64,")]))
    assert near.count("<img") == 1 and "onerror=alert" in near and "&lt;img" in near


def test_the_warning_stands_above_the_numbers_or_nowhere() -> None:
    html = answer_html(desk(), one(ood=True))
    assert html.index("mean nothing") < html.index("data-score")
    assert "mean nothing" not in answer_html(desk(), one())


def test_the_answer_is_that_of_the_bundle() -> None:
    """And a line of it does not break within a short name."""
    names = {"set": ["COVID-19", "<b>-c"], "scores": {"COVID-19": 0.5, "<b>-c": 0.5}}
    whole = '<span class="tc-whole">COVID-19</span> and <span class="tc-whole">&lt;b&gt;-c</span></h3>'
    for place, told, part in (
        (desk(), {"ood": None, "ood_score": None}, "cannot tell whether a picture is unlike"),
        (desk(), {}, "<caption>Probability, not calibrated</caption>"),
        (desk(scaling=object()), {}, "<caption>Calibrated probability</caption>"),
        (desk(SimpleNamespace(alpha=0.05)), {}, "the true class is not ruled out in 95\u00a0% of cases."),
        (desk(), names, f"abstains between {whole}"),
    ):
        assert part in answer_html(place, one(**told))


@pytest.mark.parametrize(
    "text",
    [BAD, f"# {BAD}", f"| {BAD} |\n| --- |\n| {BAD} |", "<script>alert(1)</script>", "![x](http://evil.example/a.png)"],
)
def test_a_card_with_foreign_html_is_shown_and_not_obeyed(text: str) -> None:
    html = card_html(text)
    assert "<img" not in html and "<script" not in html


def test_a_card_is_markdown_without_its_front_matter() -> None:
    html = card_html(
        "---\nlicense: x\n---\n\n# Name\n\n[a](https://a.example) [b](javascript:alert(1))\n\n| n |\n| --- |\n| 1 |\n"
    )
    assert "license" not in html and "<h3>Name</h3>" in html and "<td>1</td>" in html
    assert '<a href="https://a.example" rel="noopener noreferrer nofollow" target="_blank">a</a>' in html
    assert 'href="javascript' not in html
