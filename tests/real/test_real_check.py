"""The check on 1,124 real radiographs of which the truth is known: two copies, 21 patients under two labels, shortcuts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thoraclip.cli.app import run

COLUMNS = {
    "path": "rel_path", "patient": "patient_id", "view": "view", "sex": "sex", "age": "age", "mask": "mask_path",
    "source": "source_repo",
}  # fmt: skip


def test_check_of_covid3_talo(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, manifest, out = shared / "data" / "covid3-talo", str(tmp_path / "m.parquet"), tmp_path / "check"
    names = [word for name, column in COLUMNS.items() for word in (f"--{name}-column", column)]
    assert (
        run(["index", str(data), "--layout", "csv", "--csv", str(data / "manifest.csv"), *names, "--out", manifest])
        == 0
    )
    assert run(["check", manifest, "--strict", "--out", str(out)]) == 0, "without a split nothing can leak"
    found = json.loads((out / "check.json").read_text())

    pairs = found["duplicates"]["pairs"]
    assert [(p["kind"], [Path(i).stem for i in p["image_id"]]) for p in pairs] == [
        ("near", ["E63574A7-4188-4C8D-8D17-9D67A18A1AFA", "F4341CE7-73C9-45C6-99C8-8567A5484B63"]),
        ("identical", ["00002658_001", "00002658_002"]),
    ]
    assert pairs[0]["correlation"] > 0.97
    assert not any(p["across_label"] or p["across_patient"] for p in pairs)
    assert len(found["patients"]["under_two_labels"]) == 21
    assert all(p["values"] == ["normal", "pneumonia"] for p in found["patients"]["under_two_labels"])
    assert found["unreadable"] == [] and found["leaks"] == []

    alone = {row["name"]: row["alone"] for row in found["differences"]}
    order = list(alone)
    assert order[0] == "all of these together" and order.index("aspect_ratio") <= 3
    assert alone["aspect_ratio"]["low"] > 0.55 and alone["border_contrast"]["low"] > 0.42
    assert alone["all of these together"]["low"] > 0.75, "0.79 by hand on border, brightness and aspect ratio"
    assert alone["source"] is None, "this table names one repository for all"

    assert run(["split", manifest, "--folds", "5", "--duplicates", str(out), "--out", str(tmp_path / "f.parquet")]) == 0
    capsys.readouterr()
    assert run(["check", str(tmp_path / "f.parquet"), "--strict"]) == 0
    assert "no leak found" in capsys.readouterr().out
