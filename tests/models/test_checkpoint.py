"""What every loader refuses: a checkpoint that is not whole, not of its type, or not there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file
from tests.models.conftest import LABELS, changed

from thoraclip.errors import ConfigError, ModelError
from thoraclip.methods.checking import check_model
from thoraclip.models.backbones import load_backbone
from thoraclip.models.captioner import load_captioner
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.network import resolve_precision
from thoraclip.models.segmenter import load_segmenter

LOADERS: dict[str, tuple[Callable[..., Any], str]] = {
    "clip": (load_dual_encoder, "visual_projection.weight"),
    "blip": (load_captioner, "vision_model.post_layernorm.weight"),
    "segformer": (load_segmenter, "decode_head.classifier.bias"),
    "vit": (partial(load_backbone, labels=LABELS), "vit.embeddings.position_embeddings"),
}
"""Each loader by the kind that it loads, and a weight of the same name on disk and in memory."""
OTHER_TYPE = {
    "clip": "not a dual encoder",
    "blip": "no captioner; name a BLIP model, such as Salesforce/blip-",
    "segformer": "no semantic segmentation model",
    "vit": "no image classifier, dual encoder or vision tower",
}


@pytest.mark.parametrize("kind", LOADERS)
def test_weights_that_do_not_fill_the_architecture_are_named(
    kind: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    load, name = LOADERS[kind]
    weight = load_file(checkpoints[kind] / "model.safetensors")[name]
    infinite = weight.clone()
    infinite.view(-1)[-1] = torch.inf
    cases = [
        ({name: None}, f"1 weights are missing, first '{name}'"),
        ({f"{name}.stray": weight}, f"1 weights are not part of the architecture, first '{name}.stray'"),
        ({name: torch.zeros(9, 9)}, f"1 weights have another shape, first '{name}'"),
        ({name: infinite}, f"weight '{name}' holds NaN or infinite numbers"),
        ({name: torch.zeros(weight.shape, dtype=torch.int8)}, f"weight '{name}' holds whole numbers"),
    ]
    for number, (change, message) in enumerate(cases):
        with pytest.raises(ModelError, match=message):
            load(str(changed(checkpoints[kind], tmp_path / str(number), change)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (errors.RepositoryNotFoundError, "no such model there, or one that needs a token"),
        (errors.GatedRepoError, "no such model there, or one that needs a token"),
        (errors.RemoteEntryNotFoundError, "404"),
        (errors.OfflineModeIsEnabled, "which cannot be reached: 404"),
        (TimeoutError, "which cannot be reached: 404"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_refused_without_a_second_question(
    kind: type[Exception], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: str) -> None:
        is_http = issubclass(kind, errors.HfHubHTTPError)
        raise kind("404", **({"response": Mock()} if is_http else {}))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("asked again"))
    message = rf"'nobody/none': neither .* found on the Hub \({reason}\); check the spelling"
    for ask in (load_dual_encoder, partial(check_model, geometry="squash")):
        with pytest.raises(ModelError, match=message):
            ask("nobody/none")


@pytest.mark.parametrize("kind", LOADERS)
def test_folders_that_are_not_whole_or_of_another_type_are_refused(
    kind: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    load, _ = LOADERS[kind]
    cases = [
        ("model.safetensors", "weights cannot be loaded .*; a model.safetensors is needed"),
        (
            "preprocessor_config.json",
            "preprocessor_config.json is missing, .*; save the image processor beside the weights",
        ),
        ("config.json", "config.json: is missing"),
    ]
    for number, (removed, message) in enumerate(cases):
        broken = changed(checkpoints[kind], tmp_path / str(number))
        if removed == "model.safetensors":  # pickled ones are not read
            torch.save(load_file(broken / removed), broken / "pytorch_model.bin")
        (broken / removed).unlink()
        with pytest.raises(ModelError, match=message):
            load(str(broken))
    (broken / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(ModelError, match=f"type 'bert' is {OTHER_TYPE[kind]}"):
        load(str(broken))
    for name, message in (("tiny-clop", "did you mean 'tiny-clip'"), ("./no/where", "no such folder")):
        with pytest.raises(ModelError, match=message):
            load(name)


@pytest.mark.parametrize("kind", LOADERS)
def test_unknown_precisions_and_geometries_are_named(kind: str, checkpoints: dict[str, Path]) -> None:
    load, folder = LOADERS[kind][0], str(checkpoints[kind])
    with pytest.raises(ConfigError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        load(folder, precision="bf61")
    if kind != "segformer":  # it is not asked
        with pytest.raises(ConfigError, match="unknown geometry 'sqash'; did you mean 'squash'"):
            load(folder, geometry="sqash")


@pytest.mark.parametrize("kind", ["vit", "segformer"])
def test_a_network_of_one_channel_is_refused(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes 1 channels; a network of 3 is needed"):
        LOADERS[kind][0](str(changed(checkpoints[kind], tmp_path / "grey", config={"num_channels": 1})))


def test_the_precision_is_fp32_or_bf16_as_asked() -> None:
    cpu = torch.device("cpu")
    assert [resolve_precision(p, cpu) for p in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert resolve_precision("auto", cpu) == ("bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32")
