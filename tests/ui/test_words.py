"""What the page says of an answer, and that no word of a bundle becomes HTML."""

from __future__ import annotations

from typing import Any

import pytest
from tests.ui.conftest import Server, Visit, visiting

from thoraclip.server.answers import About, BundleFacts, Explained, Neighbour, OnePicture, Predicted

BAD = "<img src=x onerror='window.bad = 1'>"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
CARD = f"""---
license: {BAD}
---

# Name {BAD}

**Bold {BAD}** and \\*plain\\*, a &lt;b&gt; and `code {BAD}`
go on in one paragraph. ![x](http://evil.example/a.png)
[a](https://a.example/x?y=1) [b](javascript:window.bad=1)

- item {BAD}

| n \\| m | {BAD} |
| --- | --- |
| 1 | {BAD} |

```sh
fenced {BAD}
```
<script>window.bad = 1</script>
"""


def one(**told: Any) -> dict[str, Any]:
    """An image's answer, as the API writes it."""
    usual = {"index": 0, "label": "B", "scores": {"A": 0.25, "B": 0.75}, "set": ["B"], "ood": False, "ood_score": 1.0}
    return OnePicture(**{**usual, "neighbours": None, "remarks": [], "error": None, **told}).model_dump()


def about(name: str, labels: list[str], **told: Any) -> dict[str, Any]:
    """A bundle, as `/v1/bundles` tells it."""
    usual = {"calibrated": True, "set_coverage": 0.9, "detects_ood": True, "thumbnails": 0, "methods": ["occlusion"]}
    known = {"name": name, "title": f"title {name}", "labels": labels, "fingerprint": "0" * 64}
    return BundleFacts(**{**usual, **known, "most_bytes": 10**6, "phantoms": 0, **told}).model_dump()


def answer(visit: Visit, bundle: dict[str, Any], picture: dict[str, Any], card: str = "", **told: Any) -> None:
    """Let the server answer so, load the page anew, and choose a file.

    Args:
        visit: of the page.
        bundle: of `about`.
        picture: of `one`.
        card: Markdown.
        told: fields of `Explained`; none for a refusal.
    """
    brief = {name: bundle[name] for name in About.model_fields}
    predicted = Predicted(bundle=About(**brief), pictures=[OnePicture(**picture)]).model_dump()
    usual = {
        "evidence_in_lungs": 0.25,
        "lung_area": 0.5,
        "lungs_from": "given",
        "outline": PIXEL,
        "method": "occlusion",
    }
    layers = {"bundle": brief, "prediction": picture, "explained": picture["label"], "picture": PIXEL, "heat": PIXEL}
    explained = Explained(**{**layers, **usual, **told}).model_dump()
    visit.tab.route("**/v1/bundles", lambda route: route.fulfill(json=[bundle]))
    visit.tab.route("**/v1/predict*", lambda route: route.fulfill(json=predicted))
    visit.tab.route("**/v1/explain*", lambda route: route.fulfill(json=explained))
    visit.tab.route("**/card*", lambda route: route.fulfill(body=card))
    visit.tab.reload()
    visit.show(b"any")


@pytest.mark.parametrize(
    ("kept", "kind", "headline", "detail"),
    [
        (["B"], "one", "B", "B is the only class that the bundle cannot rule out."),
        (["A", "B"], "several", "The bundle abstains between A and B", "Neither can be ruled out."),
        (["A", "B", "C"], "several", "The bundle abstains between A, B and C", "None of them can be ruled out."),
        ([], "none", "Looks like no class",
         "The bundle rules out every class that it knows. The bars only say which is nearest."),
        (None, "absent", "Most likely B",
         "The bundle has no prediction sets: it does not say which classes can be ruled out."),
    ],
)  # fmt: skip
def test_a_set_in_words(visit: Visit, kept: list[str] | None, kind: str, headline: str, detail: str) -> None:
    said = {"kind": kind, "headline": headline, "detail": detail}
    assert visit.call("verdict", {"label": "B", "set": kept}) == said


def test_a_chance_is_never_certain(visit: Visit) -> None:
    scores = [0, 0.0005, 0.00099, 0.001, 0.0015, 0.1, 0.33333, 0.5, 0.9, 0.9985, 0.999, 0.9991, 0.99999, 1]
    for score in scores:
        text = visit.call("chance", score)
        assert text.endswith("\u00a0%") and text not in ("0.0\u00a0%", "100.0\u00a0%")
        if text[0] not in "<>":
            assert abs(float(text[:-2]) / 100 - score) <= 0.0005 + 1e-12
        else:
            assert score < 0.001 or score > 0.999


def test_a_refusal_is_what_the_problem_details_say(visit: Visit) -> None:
    unreadable = {"detail": "not a PNG", "pictures": [{"index": 0, "error": "not a PNG"}]}
    for told, reason in (
        ((422, unreadable, None), "This image cannot be read: not a PNG."),
        ((429, {"detail": "9 wait"}, "4"), "The server is busy: 9 wait. Try again in 4 s."),
        ((503, {"detail": "it is stopping"}, None), "The server is busy: it is stopping."),
        ((422, {"detail": "takes longer than 30 s"}, None), "No answer: takes longer than 30 s."),
        (
            (500, {"detail": "a fault; its log has more under 0f"}, None),
            "No answer: a fault; its log has more under 0f.",
        ),
        ((502, {}, None), "No answer: the server failed with status 502."),
    ):
        assert visit.call("refusal", *told) == reason


def test_a_bundle_without_sets_warnings_lungs_and_thumbnails_says_so(visit: Visit) -> None:
    bundle = about("plain", ["A", "B"], calibrated=False, set_coverage=None, detects_ood=False)
    plain = {"evidence_in_lungs": None, "lung_area": None, "outline": None, "lungs_from": "not drawn: no SciPy"}
    answer(visit, bundle, one(set=None, ood=None, ood_score=None), **plain)
    tab = visit.tab
    assert tab.get_by_role("heading", level=3).all_inner_texts() == ["Most likely B"]
    table = tab.get_by_role("table", name="Probability, not calibrated")
    assert table.get_by_role("columnheader").all_inner_texts() == ["Class", "Probability"]
    assert visit.scores == [{"B": "0.750000", "A": "0.250000"}]
    assert tab.get_by_text("cannot tell whether an image is unlike its training images").is_visible()
    assert tab.get_by_text("in cases").count() == tab.get_by_role("img", name="Training image").count() == 0
    assert not tab.locator("[data-outline]").is_visible() and tab.get_by_label("Lung outline").is_disabled()
    words = "Lung outline: not drawn: no SciPy. The colour is scaled to this image's hottest place. A map is no proof."
    assert tab.locator("[data-caption]").inner_text() == words
    assert tab.get_by_role("button", name="synthetic").count() == 0
    assert "not calibrated" in tab.locator("[data-facts]").evaluate("e => e.textContent")


def test_a_bundle_that_can_tell_all_says_all(visit: Visit) -> None:
    near = [Neighbour(label="A", similarity=0.5, picture=PIXEL)]
    answer(visit, about("full", ["A", "B"], set_coverage=0.95, thumbnails=3), one(set=["A", "B"], neighbours=near))
    tab = visit.tab
    assert tab.get_by_text("the true class is not ruled out in 95\u00a0% of cases.").last.is_visible()
    assert tab.get_by_role("img", name="Training image of class A").is_visible()
    assert (
        tab.locator("[data-caption]")
        .inner_text()
        .startswith("25\u00a0% of the evidence lies in the lungs, which cover 50")
    )
    answer(visit, about("full", ["A", "B"]), one(), evidence_in_lungs=None)
    assert "The map is empty: this method sees no evidence" in tab.locator("[data-caption]").inner_text()


def test_a_line_does_not_break_within_a_short_name(visit: Visit) -> None:
    names = ["COVID-19", "<b>-c"]
    answer(visit, about("names", names), one(label="<b>-c", set=names, scores=dict.fromkeys(names, 0.5)))
    heading = visit.tab.get_by_role("heading", level=3)
    assert heading.inner_text() == "The bundle abstains between COVID-19 and <b>-c"
    assert heading.locator(".whole").all_inner_texts() == names


def test_no_word_of_a_bundle_becomes_html(browser: Any, server: Server) -> None:
    near = [Neighbour(label=BAD, similarity=0.5, picture=PIXEL)]
    picture = one(label=BAD, scores={BAD: 0.5, "B": 0.5}, set=[BAD, "B"], neighbours=near)
    bundle = about(BAD, [BAD, "B"], title=BAD, methods=[BAD])
    refused = {"title": "x", "status": 422, "detail": BAD, "pictures": [{"index": 0, "error": BAD}]}
    for visit in visiting(browser, server.address):
        answer(visit, bundle, picture, CARD, method=BAD, lungs_from=BAD)
        tab = visit.tab
        tab.get_by_text("About this bundle").click()
        for place in ("title", "labels", "answer", "near", "class", "method", "caption", "card", "legend", "status"):
            assert BAD in tab.locator(f"[data-{place}]").evaluate("e => e.textContent"), place
        assert tab.locator("[data-heat]").get_attribute("alt") == f"Heat map: evidence for {BAD}, by {BAD}"
        tab.route("**/v1/predict*", lambda route: route.fulfill(status=422, json=refused))
        visit.give(b"any", name=BAD)
        tab.get_by_role("alert").filter(has_text=f"This image cannot be read: {BAD}.").wait_for()
        assert tab.evaluate("window.bad") is None
        assert tab.locator("img[src=x], script:not([type=module])").count() == 0
        visit.forgive("422")


def test_a_card_is_markdown_without_its_front_matter_images_and_html(visit: Visit) -> None:
    answer(visit, about("card", ["A", "B"]), one(), CARD)
    visit.tab.get_by_text("About this bundle").click()
    card = visit.tab.locator("[data-card]")
    assert "license" not in card.inner_text()
    assert card.get_by_role("heading", level=3, name=f"Name {BAD}").count() == 1
    paragraph = card.locator("p").first.inner_text()
    assert paragraph.startswith(f"Bold {BAD} and *plain*, a <b> and code {BAD} go on in one paragraph. !")
    assert card.locator("strong").inner_text() == f"Bold {BAD}"
    assert card.locator("code").all_inner_texts() == [f"code {BAD}", f"fenced {BAD}"]
    assert card.get_by_role("listitem").all_inner_texts() == [f"item {BAD}"]
    assert card.locator("th, td").all_inner_texts() == ["n | m", BAD, "1", BAD]
    links = card.locator("a").evaluate_all("all => all.map(a => [a.textContent, a.href, a.rel, a.target])")
    assert links == [
        ["x", "http://evil.example/a.png", "noopener noreferrer nofollow", "_blank"],
        ["a", "https://a.example/x?y=1", "noopener noreferrer nofollow", "_blank"],
    ]
    assert "[b](javascript:window.bad=1)" in paragraph and "<script>" in card.inner_text()
