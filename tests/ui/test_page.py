"""The page does what it says: numbers, maps, warnings and refusals, as a visitor meets them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.imaging.files import encoded
from tests.ui.conftest import Bundles, Server, Visit, visiting

import thoraclip


def told_by_predict(bundle: Path, data: bytes, folder: Path) -> dict[str, Any]:
    """The row of `thoraclip.predict`."""
    (folder / "picture").mkdir(exist_ok=True)
    file = folder / "picture" / ("a.dcm" if data[128:132] == b"DICM" else "a.png")
    file.write_bytes(data)
    out = folder / f"{bundle.name}.csv"
    thoraclip.predict(bundle, file, out=out)
    return next(csv.DictReader(out.open()))


def scores(row: dict[str, Any]) -> dict[str, str]:
    return {name[6:]: f"{float(told):.6f}" for name, told in row.items() if name.startswith("score_")}


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_a_file_gets_the_very_numbers_of_predict(
    visit: Visit, bundles: Bundles, pictures: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    visit.show(pictures[kind], name="IM0001")
    assert kind == "dicom" or visit.tab.get_by_text("does not look like").count() == 0
    row = told_by_predict(bundles.probe, pictures[kind], tmp_path)
    assert visit.scores == [scores(row)]
    for name, told in scores(row).items():
        line = visit.tab.get_by_role("row").filter(has=visit.tab.get_by_role("rowheader", name=name, exact=True))
        assert line.get_by_text(f"{100 * float(told):.1f}\u00a0%").get_attribute("title") == told
        expected = "not ruled out" if name in row["set"].split("|") else "ruled out"
        assert line.get_by_text("ruled out").inner_text() == expected
    assert visit.tab.get_by_text("IM0001").is_visible()
    headline = visit.tab.get_by_role("heading", level=3).first.inner_text()
    kinds = ("The bundle abstains between ", "Looks like no class", "COVID-19", "Non-COVID", "Normal")
    assert headline.startswith(kinds)
    assert headline in visit.tab.get_by_role("status").first.inner_text(), "it is spoken, too"


def test_the_map_is_tuned_in_the_browser_alone(visit: Visit, pictures: dict[str, bytes]) -> None:
    visit.show(pictures["png"])
    tab, asked = visit.tab, [one for one in visit.asked if "/health" not in one]
    heat, outline = tab.locator("[data-heat]"), tab.locator("[data-outline]")
    sizes = {tuple(one.bounding_box().values()) for one in (heat, outline, tab.locator("[data-picture]"))}
    assert len(sizes) == 1
    assert heat.evaluate("e => e.style.opacity") == "0.7"
    tab.get_by_label("Opacity").fill("20")
    assert heat.evaluate("e => e.style.opacity") == "0.2"
    assert outline.is_visible()
    tab.get_by_label("Lung outline").uncheck()
    assert not outline.is_visible()
    assert [one for one in visit.asked if "/health" not in one] == asked


def test_another_class_gets_its_own_map_and_one_method_is_no_choice(visit: Visit, pictures: dict[str, bytes]) -> None:
    visit.show(pictures["png"])
    tab, seen = visit.tab, set()
    for label in ("Normal", "Non-COVID", "COVID-19"):
        tab.get_by_label("Evidence for").select_option(label)
        shown = tab.get_by_role("img", name=f"Heat map: evidence for {label}, by occlusion")
        shown.wait_for()
        seen.add(shown.get_attribute("src"))
    assert len(seen) == 3
    assert not tab.get_by_label("Method").is_visible()
    assert "A map is no proof." in tab.locator("[data-caption]").inner_text()


def test_a_photograph_is_warned_of(visit: Visit) -> None:
    photograph = pytest.importorskip("skimage.data").astronaut()
    visit.give(encoded(Image.fromarray(photograph)))
    alert = visit.tab.get_by_role("alert").filter(has_text="does not look like")
    alert.wait_for()
    warning = "This does not look like the images that the classifier was trained on; the numbers below mean nothing."
    assert alert.inner_text() == warning
    assert alert.bounding_box()["y"] < visit.tab.get_by_role("table").bounding_box()["y"]
    visit.wait_for_maps()


def test_no_picture_is_told_and_nothing_of_the_last_one_stays(visit: Visit, pictures: dict[str, bytes]) -> None:
    for data, reason in (
        (b"Findings: none.", "This image cannot be read: not a PNG, JPEG or DICOM picture."),
        (b"", "This file is empty."),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "This image cannot be read: "),
    ):
        visit.show(pictures["png"])
        visit.give(data, name="<img src=x onerror=alert(1)>.txt")
        visit.tab.get_by_role("alert").filter(has_text=reason).wait_for()
        assert visit.tab.get_by_role("table").count() == 0
        assert not visit.tab.locator("[data-picture]").is_visible()
    visit.forgive("422", times=2)


def _raise_most_bytes(route: Any) -> None:
    response = route.fetch()
    route.fulfill(response=response, json=[one | {"most_bytes": 10**9} for one in response.json()])


def test_what_is_too_large_is_refused_by_the_browser_and_by_the_server(browser: Any, pair: Server) -> None:
    too_large = b"\x89PNG\r\n\x1a\n" + b"\0" * 2_000_000
    for visit in visiting(browser, pair.address):
        before = len(visit.asked)
        visit.give(too_large)
        reason = "This file has 2.1\u00a0MB; the server takes up to 2\u00a0MB."
        visit.tab.get_by_role("alert").filter(has_text=reason).wait_for()
        assert not any("predict" in one for one in visit.asked[before:])
        visit.tab.route("**/v1/bundles", _raise_most_bytes)
        visit.tab.reload()
        visit.give(too_large)
        visit.tab.get_by_role("alert").filter(has_text="the request is larger than 2 MB").wait_for()
        visit.forgive("413", times=2)


def test_an_image_that_is_chosen_before_the_bundles_are_known_is_answered(
    visit: Visit, pictures: dict[str, bytes]
) -> None:
    held: list[Any] = []
    visit.tab.route("**/v1/bundles", lambda route: held.append(route))
    visit.tab.reload()
    visit.give(pictures["png"])
    held.pop().continue_()
    visit.wait_for_maps()
    visit.tab.get_by_role("table").wait_for()


def test_a_busy_server_is_told_and_the_numbers_stay(visit: Visit, pictures: dict[str, bytes]) -> None:
    visit.show(pictures["png"])
    problem = {"title": "Too Many Requests", "status": 429, "detail": "too much is being received at once; come later"}
    told = {"status": 429, "json": problem, "headers": {"retry-after": "7"}}
    visit.tab.route("**/v1/explain*", lambda route: route.fulfill(**told))
    classes = visit.tab.get_by_label("Evidence for")
    shown = classes.input_value()
    classes.select_option(next(name for name in ("Normal", "COVID-19") if name != shown))
    reason = "The server is busy: too much is being received at once; come later. Try again in 7 s."
    visit.tab.get_by_text(reason).wait_for()
    assert visit.tab.get_by_role("table").count() == 1
    visit.forgive("429")


def test_two_bundles_stand_side_by_side_with_similar_training_images(
    visit_pair: Visit, bundles: Bundles, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    visit_pair.show(pictures["png"])
    both = (bundles.probe, bundles.zeroshot)
    assert visit_pair.scores == [scores(told_by_predict(one, pictures["png"], tmp_path)) for one in both]
    left, right = (visit_pair.tab.get_by_role("region", name=one.name).first.bounding_box() for one in both)
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    heats = [one.bounding_box() for one in visit_pair.tab.locator("[data-heat]").all()]
    assert heats[0]["y"] == heats[1]["y"]
    probe, zeroshot = (visit_pair.tab.get_by_role("region", name=name).first for name in ("probe on", "zeroshot on"))
    assert zeroshot.get_by_role("img", name="Training image").count() == 0
    near = probe.get_by_role("listitem").filter(has=visit_pair.tab.get_by_role("img", name="Training image"))
    similar = [float(one) for one in near.locator("[title]").evaluate_all("all => all.map(one => one.title)")]
    assert len(similar) == 5 and similar == sorted(similar, reverse=True)


def test_the_card_is_there_and_a_synthetic_radiograph_says_that_it_is_one(visit: Visit) -> None:
    visit.tab.get_by_text("About this bundle").click()
    assert visit.tab.get_by_role("heading", name="What it promises").is_visible()
    assert visit.tab.get_by_role("table").count() >= 1
    visit.tab.get_by_role("button", name="Try a synthetic radiograph").click()
    visit.wait_for_maps()
    assert visit.tab.get_by_text("a synthetic radiograph, drawn by a program: no patient").is_visible()


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ('new DragEvent("drop", {dataTransfer: held, bubbles: true, cancelable: true})', "given.png"),
        ('new ClipboardEvent("paste", {clipboardData: held, bubbles: true})', "from the clipboard"),
    ],
)
def test_an_image_can_be_dropped_anywhere_or_pasted(
    visit: Visit, pictures: dict[str, bytes], event: str, name: str
) -> None:
    give = f"""(_, data) => {{
      const held = new DataTransfer();
      held.items.add(new File([Uint8Array.from(data)], "given.png", {{type: "image/png"}}));
      document.body.dispatchEvent({event});
    }}"""
    visit.tab.locator("body").evaluate(give, list(pictures["png"]))
    visit.wait_for_maps()
    assert visit.tab.get_by_text(name).is_visible()


def test_the_last_picture_wins(visit: Visit, bundles: Bundles, pictures: dict[str, bytes], tmp_path: Path) -> None:
    asked: list[Any] = []
    visit.tab.route("**/v1/predict*", lambda route: asked.append(route))
    visit.give(pictures["dicom"], name="first.dcm")
    visit.wait_until(lambda: len(asked) == 1)
    visit.give(pictures["png"])
    asked[0].continue_()
    visit.wait_until(lambda: len(asked) == 2)
    assert visit.tab.get_by_role("table").count() == 0
    assert visit.tab.get_by_text("first.dcm").count() == 0
    asked[1].continue_()
    visit.tab.unroute_all()
    visit.wait_for_maps()
    assert visit.scores == [scores(told_by_predict(bundles.probe, pictures["png"], tmp_path))]


def test_nothing_is_written_to_disk(browser: Any, server: Server, pictures: dict[str, bytes]) -> None:
    for visit in visiting(browser, server.address):
        for kind in ("png", "dicom"):
            visit.show(pictures[kind], name="DOE^JANE.dcm")
    assert server.written == []
    assert not [line for line in server.log if "DOE" in line]
    if (maps := Path(f"/proc/{server.process.pid}/maps")).is_file():
        assert "torch" not in maps.read_text()
