"""The check on 1,124 real radiographs of which the truth is known: two copies, 21 patients under two labels, shortcuts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import Capture
from tests.real.conftest import first_of_each_class

from thoraclip.cli.app import run
from thoraclip.data.index import IndexResult
from thoraclip.tables.manifest import write_manifest

PAIRS = [
    ("near", ["E63574A7-4188-4C8D-8D17-9D67A18A1AFA", "F4341CE7-73C9-45C6-99C8-8567A5484B63"]),
    ("identical", ["00002658_001", "00002658_002"]),
]


@pytest.mark.slow
def test_check_of_covid3_talo(talo: IndexResult, tmp_path: Path, capsys: Capture) -> None:
    """On 100 images of each class, both copies, and everyone who has images under two labels."""
    table, manifest, out = talo.manifest, str(tmp_path / "m.parquet"), tmp_path / "check"
    both, copies = table.patients_in_two("label"), {name for _, names in PAIRS for name in names}
    rows = {
        row
        for row, (patient, path) in enumerate(zip(table.column("patient"), table.paths(), strict=True))
        if patient in both or path.stem in copies
    }
    write_manifest(Path(manifest), table.take(np.array(sorted(rows | set(first_of_each_class(table, 100))))))
    assert run(["check", manifest, "--strict", "--out", str(out)]) == 0, "without a split nothing can leak"
    found = json.loads((out / "check.json").read_text())

    pairs = found["duplicates"]["pairs"]
    assert [(p["kind"], [Path(i).stem for i in p["image_id"]]) for p in pairs] == PAIRS
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
