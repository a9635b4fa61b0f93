"""The functions do what their commands do, take what a notebook gives, and say nothing unless asked."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import Capture, files

import thoraclip
from thoraclip.api import methods
from thoraclip.cards import CardSettings
from thoraclip.cli.app import run
from thoraclip.errors import ConfigError, LeakError, ModelError, ThoraclipError
from thoraclip.methods import METHODS, Method
from thoraclip.models.files import locate
from thoraclip.tables.manifest import Manifest


def test_from_a_folder_to_a_report_in_silence(class_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """Text and paths, files and tables, all the way."""
    found = thoraclip.index(str(class_folder), out=tmp_path / "m.parquet")
    assert (tmp_path / "m.index.json").is_file()
    check = thoraclip.check(found.manifest, out=str(tmp_path / "check"))
    assert check["leaks"] == []
    assert thoraclip.check(str(tmp_path / "m.parquet"))["duplicates"] == check["duplicates"], (
        "writes nothing, finds all"
    )
    folds = thoraclip.split(found.manifest, out=str(tmp_path / "f.parquet"), folds=3, duplicates=tmp_path / "check")
    assert set(folds.column("fold")) == {0, 1, 2}
    page = thoraclip.card(tmp_path / "f.parquet", out=tmp_path / "card", name="Small set")
    assert "Small set" in page.read_text(encoding="utf-8")
    features = thoraclip.embed(folds, model="tiny-clip", out=tmp_path / "e", pixels=str(tmp_path / "pixels"))
    assert features.pooled.shape[0] == 24
    zero_shot = thoraclip.zeroshot(str(tmp_path / "f.parquet"), out=tmp_path / "z", embeddings=tmp_path / "e")
    assert len(zero_shot.predictions) == 24 and zero_shot.details["per_prompt"]
    thoraclip.probe(folds, out=str(tmp_path / "p"), embeddings=str(tmp_path / "e"), l2_steps=3)
    runs = [zero_shot, tmp_path / "p" / "predictions.parquet"]
    report = thoraclip.report(runs, out=tmp_path / "report", manifest=folds, resamples=200)
    assert {m["name"] for m in report["methods"]} == {"z", "p", "majority"}
    alone = thoraclip.report(str(tmp_path / "z"), out=tmp_path / "alone", manifest=folds, resamples=200, title="One")
    assert "data:image" in (tmp_path / "alone" / "report.html").read_text(encoding="utf-8"), "it is wrong somewhere"
    assert (alone["title"], alone["sample"]["n"]) == ("One", 24)
    assert {(row["claim"], row["source"]) for row in alone["comparisons"]} == {("methods", "patients")}, (
        "none is trained"
    )
    assert capsys.readouterr() == ("", "")


def test_a_split_by_shares_takes_numbers_as_well_as_text(manifest: Manifest, tmp_path: Path) -> None:
    by_numbers = thoraclip.split(manifest, out=tmp_path / "a.parquet", fractions=(0.6, 0.2, 0.2)).column("split")
    by_text = thoraclip.split(manifest, out=tmp_path / "b.parquet", fractions="0.6,0.2,0.2").column("split")
    assert by_numbers == by_text and set(by_text) == {"train", "val", "test"}
    with pytest.raises(ConfigError, match="give either"):
        thoraclip.split(manifest, out=tmp_path / "c.parquet", folds=3, fractions=(0.6, 0.2, 0.2))


@pytest.mark.parametrize("kind", ["zeroshot", "trivial"])
def test_a_function_and_its_command_write_the_same(kind: str, manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'kind = "{kind}"\nonly_folds = [0]\n')
    assert run([kind, str(manifest_file), "--config", str(tmp_path / "c.toml"), "--set", "only_folds=[1, 2]",
                "--out", str(tmp_path / "command")]) == 0  # fmt: skip
    getattr(thoraclip, kind)(manifest_file, out=tmp_path / "function", config=tmp_path / "c.toml", only_folds=(1, 2))
    assert files(tmp_path / "command") == files(tmp_path / "function")
    assert "only_folds = [1, 2]" in (tmp_path / "function" / "config.toml").read_text()


def test_a_study_takes_settings_as_keywords(manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('manifest = "m.parquet"\n[[methods]]\nkind = "trivial"\nmax_iter = 5\n')
    report = thoraclip.run_study(str(tmp_path / "s.toml"), out=str(tmp_path / "s"), seeds=[0, 1], resamples=100)
    assert report["methods"][0]["seeds"] == [0, 1]
    assert isinstance(report, thoraclip.Report) and report.folder == tmp_path / "s" and "forest" in report.figures
    with pytest.raises(ConfigError, match="unknown setting 'sedes'; did you mean 'seeds'"):
        thoraclip.run_study(tmp_path / "s.toml", out=tmp_path / "s", sedes=[0, 1])


def test_captions_and_phantoms(manifest: Manifest, tmp_path: Path, capsys: Capture) -> None:
    captions = thoraclip.caption(manifest, captioner="template", everywhere=True, out=str(tmp_path / "c.parquet"))
    assert sum(captions.with_label) == 24
    summary = thoraclip.phantom(str(tmp_path / "phantoms"), images=6, size=96, shortcut="border=0.9")
    assert (summary.images, summary.root) == (6, tmp_path / "phantoms")
    with pytest.raises(ConfigError, match="images = 59: the demo needs 60 or more"):
        thoraclip.demo(out=tmp_path / "demo", images=59)
    assert capsys.readouterr() == ("", "")


def test_progress_is_told_when_asked_for(manifest: Manifest, tmp_path: Path, capsys: Capture) -> None:
    thoraclip.embed(manifest, model="tiny-clip", out=tmp_path / "e", progress=True)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("images: 24/24")
    calls: list[tuple[int, int]] = []
    thoraclip.embed(manifest, model="tiny-clip", out=tmp_path / "f", progress=lambda *done: calls.append(done))
    assert calls[-1] == (24, 24)
    captions = {"captioner": "template", "everywhere": True, "out": tmp_path / "c.parquet", "progress": True}
    thoraclip.caption(manifest, **captions)
    assert "the class stands in the captions of images that are later scored" in capsys.readouterr().err
    told: list[str] = []
    thoraclip.caption(manifest, **captions, announce=told.append)
    assert len(told) == 1
    assert capsys.readouterr() == ("", "")


def test_a_leaking_table_is_refused_where_its_file_would_be(manifest: Manifest, tmp_path: Path) -> None:
    leaking = Manifest(manifest.table, manifest.root, may_leak=True).with_columns(patient=["p"] * len(manifest))
    for name in ("zeroshot", "trivial"):
        with pytest.raises(LeakError, match="patient 'p' stands in two folds"):
            getattr(thoraclip, name)(leaking, out=tmp_path / name)
        assert not (tmp_path / name).exists()
    assert thoraclip.check(leaking)["leaks"]


@pytest.mark.parametrize(
    ("verb", "settings", "message"),
    [
        ("probe", {"bacth_size": 3}, r"^probe: unknown setting 'bacth_size'; did you mean 'batch_size'\?$"),
        ("card", {"license": "CC0-1.0"}, r"^card: unknown setting 'license'; did you mean 'licence'\?$"),
        ("probe", {"config": "z.toml"}, r"z\.toml: holds settings of another method than 'probe'"),
        ("probe", {"manifest": "nowhere.parquet"}, "nowhere"),
        ("probe", {"only_folds": [1, 1]}, r"only_folds = \[1, 1\]: every value is needed once"),
        ("probe", {"only_folds": [7]}, "manifest: no fold 7, which only_folds names"),
        ("zeroshot", {"classes": ["Normal", "b"]}, "class 'b' has no image; known"),
        ("zeroshot", {"classes": ["a", "a"]}, "every value is needed once"),
        ("zeroshot", {"model": ""}, "model '': no such folder or shipped model"),
        ("zeroshot", {"adapter": "none"}, "adapter 'none': no adapter there; name a PEFT adapter folder"),
        ("zeroshot", {"prompts": "p.toml"}, "prompts 'p': no image is of class 'Covid29'"),
        ("finetune", {"captions": "none.parquet", "loss": "unicl"}, r"none\.parquet: no such captions file"),
        ("finetune", {"processes": 7}, "processes = 7, but 1 was started"),
    ],
)
def test_mistakes_name_the_verb(
    verb: str, settings: dict[str, Any], message: str, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifest_file.parent)
    Path("z.toml").write_text('kind = "zeroshot"\n')
    Path("p.toml").write_text('[classes]\nCovid29 = ["pneumonia"]\n')
    with pytest.raises(ThoraclipError, match=message):
        getattr(thoraclip, verb)(**{"manifest": manifest_file, "out": "p", **settings})
    assert not Path("p").exists()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((128, 192), torch.nan), "weight 'visual_projection.weight' holds NaN"),
        (torch.zeros((128, 192), dtype=torch.int8), "weight 'visual_projection.weight' holds whole numbers"),
    ],
)
def test_damaged_weights_leave_nothing_behind(
    weight: torch.Tensor, message: str, manifest_file: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(locate("tiny-clip")[0], tmp_path / "damaged"))
    weights = load_file(folder / "model.safetensors") | {"visual_projection.weight": weight}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for verb in (thoraclip.zeroshot, thoraclip.embed):
        with pytest.raises(ModelError, match=message):
            verb(manifest_file, out=tmp_path / "run", model=str(folder))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [*METHODS, "card"])
def test_no_argument_can_be_given_as_a_setting(kind: str, manifest_file: Path, tmp_path: Path, capsys: Capture) -> None:
    settings = CardSettings if kind == "card" else METHODS[kind].config_type
    names = [p.name for p in inspect.signature(getattr(thoraclip, kind)).parameters.values() if p.kind != p.VAR_KEYWORD]
    for name in {"manifest", *names} - set(settings.__dataclass_fields__):
        assert run([kind, str(manifest_file), "--out", str(tmp_path / "r"), "--set", f"{name}=x"]) == 2
        assert f"--set: unknown setting '{name}'" in capsys.readouterr().err


def test_a_new_method_has_its_function_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "echo", Method("thoraclip.methods.trivial", "Say it again.", True))  # type: ignore[arg-type]
    echo = thoraclip.echo
    assert echo is methods.echo
    assert (echo.__name__, echo.__module__) == ("echo", "thoraclip.api.methods")
    assert str(echo.__doc__).startswith("Say it again.\n\nArgs:\n    manifest: ")
    assert "    max_iter: Rounds of boosting that are tried" in str(echo.__doc__)
    assert {"manifest", "out", "max_iter"} <= set(inspect.signature(echo).parameters)
    assert "echo" in thoraclip.__all__ and "echo" in dir(methods)
    monkeypatch.undo()
    with pytest.raises(AttributeError, match="module 'thoraclip.api.methods' has no attribute 'echo'"):
        methods.echo  # noqa: B018
