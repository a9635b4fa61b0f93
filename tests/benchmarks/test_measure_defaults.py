"""The script that measured the defaults of `finetune`."""

from __future__ import annotations

import argparse
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import thoraclip


def test_trainings_that_differ_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_from_file_location("measure_defaults", Path(__file__).parents[2] / "scripts" / "measure_defaults.py")
    assert spec and spec.loader
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    trained = list[Any]()

    def finetune(manifest: Path, *, out: Path, **settings: Any) -> None:
        trained.append(settings["validate_every"])
        out.mkdir()
        chosen = [{"validation": {"val_macro_f1": 1 / settings["validate_every"]}}]
        (out / "details.json").write_text(json.dumps({"chosen": chosen}))

    monkeypatch.setattr(thoraclip, "finetune", finetune, raising=False)
    for validations, model, more, expected in (
        (8, "m", {}, 1 / 50),
        (4, "m", {}, 1 / 100),
        (8, "m", {}, 1 / 50),
        (8, "n", {}, 1 / 50),
        (8, "m", {"precision": "fp32"}, 1 / 50),
    ):
        asked = argparse.Namespace(manifest=Path("m"), model=model, out=tmp_path, seeds=1, validations=validations)
        assert script._measure(asked, {**script.START, **more}, 12_800)[0] == [expected]
    assert trained == [50, 100, 50, 50]
