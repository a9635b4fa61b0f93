"""`models = [...]`: every method with every encoder, one table, and who is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.checkpoints import save_checkpoint, save_tower
from tests.evaluation.tables import method as judged
from tests.evaluation.tables import predictions
from tests.study.conftest import method, write_study

from thoraclip.errors import ConfigError
from thoraclip.evaluation.encoders import with_encoders
from thoraclip.evaluation.reading import three_digits
from thoraclip.evaluation.render import html_page, markdown_page
from thoraclip.evaluation.report import judge
from thoraclip.methods import encoders as encoders_module
from thoraclip.methods.encoders import EncoderConfig
from thoraclip.models import dual_encoder as loading
from thoraclip.study.crossing import encoder_costs, short_names
from thoraclip.study.plan import plan_study
from thoraclip.study.reading import read_study
from thoraclip.study.running import run_study


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dual encoder and two vision towers."""
    root = tmp_path_factory.mktemp("encoders")
    return [
        save_checkpoint("clip", root / "clip"),
        save_tower("dinov2", root / "dino"),
        save_tower("convnext", root / "conv"),
    ]


def _study(folder: Path, encoders: list[Path], text: str, manifest: Path) -> Path:
    file = write_study(folder, encoders[0], text, manifest=manifest)
    models = f"models = {json.dumps([str(path) for path in encoders])}\n"
    file.write_text(models + file.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")
    return file


LORA = {"steps": 1, "batch_size": 4, "loss": "prompt_ce", "then": "probe"}


@pytest.mark.usefixtures("undrawn")
def test_every_method_without_a_model_runs_with_every_encoder(
    encoders: list[Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'audit = "none"\nresamples = 100\nonly_folds = [0]\n'
    text += method("zeroshot", "zero-shot") + method("probe", "probe", l2_steps=2) + method("finetune", "LoRA", **LORA)
    text += method("trivial", "trees") + method("probe", "own", model=str(encoders[1]), l2_steps=2)
    config, methods = read_study(_study(tmp_path, encoders, text, images / "m.parquet"), {})
    rows = {m.name: (m.head, m.config.model if hasattr(m.config, "model") else "") for m in methods}
    clip, dino, conv = map(str, encoders)
    assert rows == {
        "zero-shot, clip": ("zero-shot", clip),
        "probe, clip": ("probe", clip),
        "probe, dino": ("probe", dino),
        "probe, conv": ("probe", conv),
        "LoRA, clip": ("LoRA", clip),
        "LoRA, clip, then probe": ("LoRA, then probe", clip),
        "trees": ("", ""),
        "own": ("", dino),
    }
    out = tmp_path / "out"
    said = list[str]()
    report = run_study(config, methods, out, announce=said.append)
    note = "zero-shot: compares images with texts, so it leaves out"
    assert any(line.startswith(f"note: {note}") and dino in line and conv in line for line in said)
    assert any(line.startswith(note) for line in plan_study(config, methods, out)["notes"])
    table = report["encoders"]
    assert not report["failed"]
    assert table["heads"] == ["zero-shot", "probe", "LoRA", "LoRA, then probe"]
    assert [(row["encoder"], set(row["cells"])) for row in table["rows"]] == [
        ("clip", {"zero-shot", "probe", "LoRA", "LoRA, then probe"}),
        ("dino", {"probe"}),
        ("conv", {"probe"}),
    ]
    for row in table["rows"]:
        assert row["parameters"] > 0 and row["dimension"] == 16 and row["images_per_second"] > 0
    monkeypatch.setattr(loading, "load_vision_encoder", lambda *_, **__: pytest.fail("weights are loaded"))
    encoders_module._load.cache_clear()
    again = run_study(*read_study(out / "config.toml", {}), out)
    assert again == report, "the resolved study names the same rows, and what was timed is kept"


def test_costs_are_kept_for_weights_whose_files_are_others_by_now(encoders: list[Path], tmp_path: Path) -> None:
    model = shutil.copytree(encoders[1], tmp_path / "dino")
    config, timed = EncoderConfig(model=str(model), precision="fp32"), list[object]()
    for text in ("", "a note"):
        (model / "README.md").write_text(text, encoding="utf-8")
        timed.append(encoder_costs({"dino": config}, tmp_path))
    assert timed[0] == timed[1]
    kept = json.loads((tmp_path / "costs.json").read_text(encoding="utf-8"))
    older = {key: value for key, value in kept.items() if isinstance(value, dict)}  # of a study by an earlier version
    assert len(older) == 1 and len(kept) == 3
    (tmp_path / "costs.json").write_text(json.dumps(older), encoding="utf-8")
    assert encoder_costs({"dino": config}, tmp_path) == timed[0]
    assert json.loads((tmp_path / "costs.json").read_text(encoding="utf-8")).items() > older.items()


def test_a_cell_holds_the_paired_difference_from_the_best_of_its_head() -> None:
    strong, weak = predictions(signal=3, seed=0), predictions(signal=0.5, seed=0)
    report = judge([judged("p, a", weak), judged("p, b", strong), judged("q, a", strong)], title="t", resamples=100)
    cells = {"p, a": ("p", "a"), "p, b": ("p", "b"), "q, a": ("q", "a")}
    found = with_encoders(report, cells, {"a": {"parameters": 7_000_000, "dimension": 5, "images_per_second": 2.5}})
    table = found["encoders"]
    assert table["best"] == {"p": "p, b", "q": "q, a"}
    pair = next(c for c in report["comparisons"] if c["metric"] == "macro_f1" and (c["a"], c["b"]) == ("p, a", "p, b"))
    first, second = table["rows"]
    assert first["cells"]["p"]["behind"] == pair and pair["difference"] < 0
    assert second["cells"]["p"]["behind"] is None and "q" not in second["cells"]
    said = [line for line in found["reading"] if "encoders" in line]
    assert (
        len(said) == 1 and said[0].startswith("p: of 2 encoders, b has the highest macro F1") and "is lower" in said[0]
    )
    for page in (markdown_page(found), html_page(found, None, None)):
        assert "Encoders" in page and "2.5" in page and "best" in page


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('models = ["a/b"]\nadapter = "x"', "adapter = 'x' belongs to one encoder"),
        ('models = ["a/b"]\n[[methods]]\nkind = "probe"\nadapter = "x"', "adapter belongs to one encoder"),
        ('models = ["a/b"]\n[[methods]]\nkind = "probe"\nembeddings = "x"', "embeddings belongs to one encoder"),
    ],
)
def test_what_belongs_to_one_encoder_is_not_crossed(lines: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f'manifest = "m.parquet"\n{lines}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "s.toml", {})


def test_a_study_that_only_compares_with_texts_needs_an_encoder_of_texts(encoders: list[Path], tmp_path: Path) -> None:
    text = method("zeroshot", "zero-shot")
    with pytest.raises(ConfigError, match=r"none of models = .* has a text tower; add a \[\[methods\]\] table"):
        read_study(_study(tmp_path, encoders[1:], text, tmp_path / "m.parquet"), {})


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\u2013"), (0.0101, "0.0101"), (2.5, "2.5"), (99.96, "100"), (634.2, "634"), (18612.0, "18,612")],
)
def test_costs_are_printed_without_powers_of_ten(value: float | None, text: str) -> None:
    assert three_digits(value) == text


def test_models_of_one_last_name_keep_their_whole_names() -> None:
    assert short_names(["a/clip", "b/dino"]) == {"a/clip": "clip", "b/dino": "dino"}
    assert short_names(["a/clip", "b/clip"]) == {"a/clip": "a/clip", "b/clip": "b/clip"}
