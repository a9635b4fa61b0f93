"""The report's page on a phone and on a wide screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.evaluation.tables import CLASSES, method, predictions

from thoraclip.evaluation.render import html_page
from thoraclip.evaluation.report import judge

WIDER = "boxes => boxes.filter(e => e.scrollWidth > e.clientWidth).length"


def test_figures_of_methods_fit_a_phone_and_tables_of_groups_a_screen(browser: Any, tmp_path: Path) -> None:
    table = predictions(90, patients=90, classes=(*CLASSES[:2], "tuberculosis"))
    sex = {i: "FM"[k % 2] for k, i in enumerate(table.image_id)}
    report = judge(
        [method("probe on DINOv2 and biomedical texts", table)], title="t", resamples=100, groups={"sex": sex}
    )
    (tmp_path / "report.html").write_text(html_page(report, None, None), encoding="utf-8")
    for width, boxes, count in ((390, ".rows", 1), (1280, ".scroll, .figure", 10)):
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.locator(boxes).count() >= count
        assert page.eval_on_selector_all(boxes, WIDER) == 0
        page.close()
