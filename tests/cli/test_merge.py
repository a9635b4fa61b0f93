"""As a user: a run, its plain Transformers folder, and what goes wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.bundle.conftest import Workshop, workshop
from tests.checkpoints import save_checkpoint
from tests.conftest import Capture, files
from tests.evaluation.cards import load_card
from tests.methods.conftest import draw_plainly
from transformers import AutoImageProcessor, AutoModelForImageClassification

import thoraclip
from thoraclip.cli.app import run
from thoraclip.data.splits import split_folds
from thoraclip.errors import InputError, ParityError
from thoraclip.labels import LabelSet
from thoraclip.methods import METHODS
from thoraclip.methods import merge as module
from thoraclip.methods.finetune import Config as Finetune
from thoraclip.methods.predictors import read_run
from thoraclip.methods.probe import Config as Probe
from thoraclip.methods.running import run_method
from thoraclip.methods.zeroshot import Config as Zeroshot
from thoraclip.models.backbones import load_backbone
from thoraclip.models.image_processor import preprocessor_json
from thoraclip.tables.manifest import write_manifest

__all__ = ["workshop"]


def block(folder: Path, number: int, image: Path) -> dict[str, float]:
    """What a snippet of the card says of an image."""
    text = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), flags=re.S)[number]
    values: dict[str, Any] = {}
    exec(text.replace("THIS_FOLDER", str(folder)).replace("image.png", str(image)), values)
    scores: dict[str, float] = values["scores"]
    return scores


def scores_of(folder: Path, image: Path) -> dict[str, float]:
    """What the run of the folder says of an image, in fp32."""
    finished = read_run(folder)
    manifest = thoraclip.read_manifest(finished.manifest_file or "")
    classifier = finished.classifier(finished.folds[0], finished.label_set(manifest))
    pixels = thoraclip.preprocess(thoraclip.decode(image), classifier.preprocess)
    return dict(zip(classifier.labels.names, classifier.predict(pixels[None])[0].tolist(), strict=True))


@pytest.mark.parametrize("kind", ["finetune", "zeroshot"])
def test_a_run_of_prompts_becomes_its_dual_encoder(
    kind: str, workshop: Workshop, tmp_path: Path, capsys: Capture
) -> None:
    folder, out = workshop.run(kind), tmp_path / "merged"
    assert run(["merge", str(folder), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "CLIPModel" in told.out and "0 of 45 test images" in told.out
    assert "Research use only, not for diagnosis" in told.out and "comparing it with the original" in told.err
    image = next((workshop.root / "images").rglob("*.png"))
    expected = scores_of(folder, image)
    assert block(out, 0, image) == pytest.approx(expected, abs=1e-5)
    assert set(block(out, 1, image)) == set(expected)
    adapter = folder / "adapter" if kind == "finetune" else ""
    own = thoraclip.load_dual_encoder(workshop.models["clip"], adapter=adapter)
    assert thoraclip.load_dual_encoder(out).fingerprint == own.fingerprint
    before = files(out)
    assert run(["merge", str(folder), "--out", str(out)]) == 0
    assert files(out) == before, "equal inputs give equal bytes, and a merged model is replaced"
    card = load_card(out)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert ("lora" in card.data.tags) is (kind == "finetune")
    assert str(tmp_path) not in card.text and str(workshop.root) not in card.text
    note = json.loads((out / "thoraclip.json").read_text())
    assert note["labels"] == list(expected) and list(note["facts"]["prompts"]) == list(expected)
    assert set(note["facts"]["files"]) == set(before)


@pytest.mark.parametrize("name", ["probe", "baseline-resnet", "baseline-vit"])
def test_a_head_becomes_an_image_classifier(name: str, workshop: Workshop, tmp_path: Path) -> None:
    folder, out = workshop.run(name), tmp_path / "merged"
    found = thoraclip.merge(folder, out=out, images=20)
    assert found["images"] == 20 and found["fold"] is None
    assert found["largest_difference"] <= 1e-5 * max(1, found["largest_logit"])
    image = next((workshop.root / "images").rglob("*.png"))
    expected = scores_of(folder, image)
    assert block(out, 0, image) == pytest.approx(expected, abs=1e-4 if name == "probe" else 1e-6)
    model = AutoModelForImageClassification.from_pretrained(out)
    assert type(model).__name__ == found["architecture"]
    pixels = AutoImageProcessor.from_pretrained(out)(images=Image.open(image), return_tensors="np")["pixel_values"]
    with torch.inference_mode():
        scores = model(torch.from_numpy(pixels)).logits.softmax(dim=-1)[0]
    np.testing.assert_allclose(scores, [*expected.values()], atol=1e-4)
    again = load_backbone(str(out), LabelSet(tuple(expected)), precision="fp32")
    assert again.preprocess == thoraclip.Preprocess.from_dict(json.loads((out / "thoraclip.json").read_text())["preprocess"])  # fmt: skip
    assert load_card(out).data.pipeline_tag == "image-classification"


def test_a_run_over_folds_gives_the_classifier_of_one(
    workshop: Workshop, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a dual encoder of DINOv2 and BERT, whose projections are trained."""
    draw_plainly(monkeypatch)
    manifest = split_folds(workshop.manifest, folds=2, seed=0)
    write_manifest(tmp_path / "m.parquet", manifest)
    manifest = thoraclip.read_manifest(tmp_path / "m.parquet")
    model = str(save_checkpoint("vision-text-dual-encoder", tmp_path / "base"))
    training = {
        "batch_size": 8,
        "chunk_size": 8,
        "steps": 2,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "model": model,
    }
    run_method("finetune", Finetune(geometry="crop", select="last", **training), manifest, tmp_path / "tuned")
    for fold, chosen in (([], 0), (["--fold", "1"], 1)):
        assert run(["merge", str(tmp_path / "tuned"), "--out", str(tmp_path / str(chosen)), *fold]) == 0
        assert f"VisionTextDualEncoderModel, of fold {chosen}" in capsys.readouterr().out
        base, merged = (
            thoraclip.load_dual_encoder(place, geometry="crop") for place in (model, tmp_path / str(chosen))
        )
        adapter = tmp_path / "tuned" / f"fold-{chosen}" / "adapter"
        own = thoraclip.load_dual_encoder(model, adapter=adapter, geometry="crop")
        assert merged.fingerprint == own.fingerprint != base.fingerprint
        assert not (merged.model.visual_projection.weight == base.model.visual_projection.weight).all()
        assert merged.logit_scale == own.logit_scale
        assert f"the classifier of fold {chosen}, one of 2" in (tmp_path / str(chosen) / "README.md").read_text()
    assert run(["merge", str(tmp_path / "tuned"), "--out", str(tmp_path / "x"), "--fold", "2"]) == 2
    assert "has no such fold; its folds: 0, 1" in capsys.readouterr().err
    run_method("probe", Probe(model=model, adapter=str(tmp_path / "tuned"), l2_steps=1, l2_min=1, l2_max=1, precision="fp32"), manifest, tmp_path / "probe")  # fmt: skip
    assert thoraclip.merge(tmp_path / "probe", out=tmp_path / "p")["architecture"] == "Dinov2ForImageClassification"
    run_method("zeroshot", Zeroshot(model=model, precision="fp32"), manifest, tmp_path / "frozen")
    assert thoraclip.merge(tmp_path / "frozen", out=tmp_path / "f", images=2)["fold"] is None, "one for all folds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--out", "OTHERS"], "holds other things than a merged model"),
        (["PROJECTED", "--out", "b"], r"features = 'projected' are unit vectors"),
        (["TUNED", "--out", "b"], "CLIPForImageClassification of model .* `thoraclip export RUN --out BUNDLE`"),
        (["PAD", "--out", "b"], "geometry = 'pad' adds bars"),
        (["OTHERS", "--out", "b"], "no run there"),
    ],
)
def test_what_no_plain_folder_says_is_one_line(
    workshop: Workshop, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"RUN": workshop.run("probe"), "OTHERS": tmp_path / "others"}
    places["OTHERS"].mkdir()
    (places["OTHERS"] / "mine.txt").write_text("mine")
    for word, name in (("PROJECTED", "probe-projected"), ("TUNED", "probe-tuned")):
        if word in arguments:
            places[word] = workshop.run(name)
    if "PAD" in arguments:
        run_method("zeroshot", METHODS["zeroshot"].config_type(geometry="pad", model=workshop.models["clip"]), workshop.manifest, tmp_path / "pad")  # fmt: skip
        places["PAD"] = tmp_path / "pad"
    capsys.readouterr()
    before = files(tmp_path)
    assert run(["merge", *(str(places.get(word, word)) for word in arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and re.search(message, lines[-1]), lines[-1]
    assert files(tmp_path) == before


def test_a_folder_that_is_another_classifier_is_not_left(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged"
    write = module.write_plain

    def spoiled(folder: Path, plain: Any, **facts: Any) -> None:
        weight = plain.network.classifier.bias
        kept = weight.detach().clone()
        weight.data += 1e-3
        write(folder, plain, **facts)
        weight.data.copy_(kept)

    monkeypatch.setattr(module, "write_plain", spoiled)
    with pytest.raises(
        ParityError, match=r"probe: on equal pixels the folder's logits differ by 0\.00(09|1)\d* from the run's"
    ):
        thoraclip.merge(workshop.run("probe"), out=out)
    assert not any(tmp_path.iterdir())

    def other_pixels(folder: Path, plain: Any, **facts: Any) -> None:
        write(folder, plain, **facts)
        content = preprocessor_json(plain.preprocess) | {"image_processor_type": "CLIPImageProcessor"}
        content |= {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
        (folder / "preprocessor_config.json").write_text(json.dumps(content))

    monkeypatch.setattr(module, "write_plain", other_pixels)
    with pytest.raises(ParityError, match=r"image processor makes other pixels than the run, by \d+.* grey levels"):
        thoraclip.merge(workshop.run("probe"), out=out)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_real_weights_and_images(shared: Path, tmp_path: Path) -> None:
    """DINOv2-S and MiniLM: `THORACLIP_SHARED`."""
    model = shared / "models" / "dino-minilm"
    if not model.is_dir():
        pytest.skip("no dino-minilm among the shared data")
    images = tmp_path / "images"
    for number, file in enumerate(sorted((shared / "data" / "covid3-talo").rglob("*.[pj][np]g"))[::45][:24]):
        place = images / f"{'ab'[number % 2]}/{number}{file.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    manifest = thoraclip.split(thoraclip.index(images, layout="folders", out=tmp_path / "i.parquet").manifest, fractions=(0.5, 0.25, 0.25), out=tmp_path / "m.parquet")  # fmt: skip
    thoraclip.zeroshot(manifest, out=tmp_path / "zeroshot", model=str(model), precision="fp32")
    thoraclip.probe(manifest, out=tmp_path / "probe", model=str(model), precision="fp32", l2_steps=3)
    for kind, name in (("zeroshot", "VisionTextDualEncoderModel"), ("probe", "Dinov2ForImageClassification")):
        found = thoraclip.merge(tmp_path / kind, out=tmp_path / f"{kind}-merged")
        assert found["architecture"] == name and not found["other_answers"]
        assert found["largest_difference"] <= 1e-5 * max(1, found["largest_logit"]) and found["grey_difference"] < 1
    with pytest.raises(InputError, match="holds other things"):
        thoraclip.merge(tmp_path / "probe", out=tmp_path / "zeroshot")
