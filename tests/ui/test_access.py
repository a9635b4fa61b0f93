"""The page for everybody: by keyboard, by screen reader, on a phone, in the light and in the dark."""

from __future__ import annotations

from typing import Any

import pytest
from tests.ui.conftest import Server, Visit, visiting

PHONE = {"width": 390, "height": 844}
LEAST_CONTRAST = 4.5
_CONTRASTS = """() => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return {rgb: [r, g, b], a}; };
  const light = ({rgb}) => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const found = parse(getComputedStyle(e).backgroundColor); if (found.a > .5) return found; } return parse("rgb(255,255,255)"); };
  const all = [];
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!text || !e.checkVisibility({checkVisibilityCSS: true}) || e.closest("label")?.control?.disabled) continue;
    if (e.closest("[disabled], :disabled, .sr, option, noscript")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    all.push([(a + .05) / (b + .05), text.slice(0, 40)]);
  }
  return all;
}"""


@pytest.fixture(params=["light", "dark"])
def themed(browser: Any, pair: Server, request: pytest.FixtureRequest) -> Any:
    """Two bundles, in both themes."""
    yield from visiting(browser, pair.address, color_scheme=request.param)


@pytest.fixture
def phone(browser: Any, pair: Server) -> Any:
    """Two bundles, on a phone."""
    yield from visiting(browser, pair.address, viewport=PHONE, has_touch=True)


def test_all_of_it_works_by_keyboard(visit: Visit, pictures: dict[str, bytes]) -> None:
    tab, keys = visit.tab, visit.tab.keyboard
    focused = "document.activeElement"
    keys.press("Tab")
    assert tab.evaluate(f"{focused}.id") == "file"
    assert tab.locator(".choose").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    with tab.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": pictures["png"]})
    visit.wait_for_maps()
    met = []
    while "SUMMARY" not in met and len(met) < 12:
        keys.press("Tab")
        met.append(tab.evaluate(f"Object.keys({focused}.dataset)[0] ?? {focused}.tagName"))
        assert tab.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
        if met[-1] == "class":
            keys.press("End")  # the last class of the bundle
            last = tab.evaluate(f"{focused}.value")
        elif met[-1] == "opacity":
            keys.press("Home")
            assert tab.locator("[data-heat]").evaluate("e => e.style.opacity") == "0"
        elif met[-1] == "switch":
            keys.press("Space")
            assert not tab.locator("[data-outline]").is_visible()
    assert met == ["synthetic", "class", "opacity", "switch", "SUMMARY"], "one heat map is no choice"
    tab.get_by_role("img", name=f"Heat map: evidence for {last}, by occlusion").wait_for()
    keys.press("Enter")
    assert tab.get_by_role("heading", name="How good it is").is_visible()


def test_a_screen_reader_finds_everything_by_name(visit: Visit, pictures: dict[str, bytes]) -> None:
    visit.show(pictures["png"])
    tab = visit.tab
    assert tab.locator("html").get_attribute("lang") == "en"
    assert tab.get_by_role("main").count() == 1
    assert tab.get_by_role("heading", level=1).inner_text() == "ThoraCLIP"
    for label in ("Choose another", "Evidence for", "Opacity", "Lung outline"):
        assert tab.get_by_label(label).count() == 1, label
    assert tab.get_by_role("slider", name="Opacity").get_attribute("aria-valuetext") == "70\u00a0%"
    assert tab.get_by_role("switch", name="Lung outline").is_checked()
    table = tab.get_by_role("table", name="Calibrated probability")
    assert table.get_by_role("rowheader").count() == 3
    assert table.get_by_role("columnheader").all_inner_texts() == ["Class", "Probability", "Prediction set"]
    for name in ("The radiograph, as the server reads it", "Heat map: evidence for", "Outline of the lungs"):
        assert tab.get_by_role("img", name=name).count() == 1, name
    assert tab.locator("img:not([alt])").count() == 0
    assert tab.locator("[data-status]").get_attribute("role") == "status"
    ids = tab.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_texts_stand_out_from_what_is_behind_them(themed: Visit, pictures: dict[str, bytes]) -> None:
    seen = themed.tab.evaluate(_CONTRASTS)
    themed.give(b"no image")
    themed.tab.get_by_role("alert").filter(has_text="cannot be read").wait_for()
    themed.forgive("422", times=2)
    seen += themed.tab.evaluate(_CONTRASTS)
    themed.show(pictures["dicom"])
    themed.tab.get_by_text("About this bundle").first.click()
    seen += themed.tab.evaluate(_CONTRASTS)
    assert len(seen) > 60
    assert [one for one in seen if one[0] < LEAST_CONTRAST] == []


def test_a_phone_shows_all_of_it_without_moving_sideways(phone: Visit, pictures: dict[str, bytes]) -> None:
    wide = "document.scrollingElement.scrollWidth"
    assert phone.tab.evaluate(wide) == PHONE["width"]
    phone.show(pictures["png"], name="a-very-long-name-" * 12 + ".png")
    assert phone.tab.evaluate(wide) == PHONE["width"]
    for card in phone.tab.get_by_text("About this bundle").all():
        card.click()
    assert phone.tab.evaluate(wide) == PHONE["width"]
    table = phone.tab.get_by_role("table", name="Calibrated probability").first
    assert table.bounding_box()["y"] < phone.tab.locator("[data-picture]").first.bounding_box()["y"]


def test_what_it_is_not_for_stays_in_sight(phone: Visit, pictures: dict[str, bytes]) -> None:
    phone.show(pictures["png"])
    phone.tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert phone.tab.evaluate("scrollY") > 500
    note = phone.tab.get_by_text("Research use only, not for diagnosis", exact=True)
    assert 0 <= note.bounding_box()["y"] < 60


def test_nothing_moves_for_who_does_not_want_it(browser: Any, server: Server) -> None:
    for visit in visiting(browser, server.address, reduced_motion="reduce"):
        moves = "all => all.filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"
        assert visit.tab.locator("body *").evaluate_all(moves) == 0
