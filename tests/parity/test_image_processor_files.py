"""What `save_pretrained` of the installed Transformers writes for an image processor is read, and gives its numbers.

The limit is relative to the largest number: float32 rounds after other multiplications.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.checkpoints import TINY, save_checkpoint
from tests.conftest import draw_picture, examples
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from thoraclip.errors import ModelError
from thoraclip.imaging import preprocess
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.files import Checkpoint
from thoraclip.models.image_processor import preprocessor_json, read_preprocess

LIMIT = 2e-6
CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIP": ("crop", CROP),
    "ChineseCLIP": ("crop", CROP),
    "Bit": ("crop", CROP),
    "MobileNetV1": ("crop", CROP),
    "MobileNetV2": ("crop", CROP),
    "Levit": ("crop", {"size": {"shortest_edge": 30}, "crop_size": {"height": 32, "width": 32}}),
    "PoolFormer": ("crop", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "crop_pct": 0.8}),
    "ConvNext": ("crop", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "MobileViT": ("crop", CROP),
    "Siglip": ("squash", SQUARE),
    "ViT": ("squash", SQUARE),
    "Blip": ("squash", SQUARE),
    "Segformer": ("squash", SQUARE),
    "Beit": ("squash", SQUARE),
    "EfficientNet": ("squash", SQUARE),
    "DeiT": ("squash", {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}),
    "DPT": ("squash", SQUARE),
    "Pvt": ("squash", SQUARE),
}
"""Class -> the geometry that it has, and sides small enough for a test."""


def processor(kind: str, **values: Any) -> Any:
    return getattr(transformers, f"{kind}ImageProcessorPil")(**{**KINDS[kind][1], **values})


def folder_checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder.name, str(folder), is_local=True, config=None)


def numbers_agree(processor: Any, folder: Path, geometry: str, shape: tuple[int, int] = (70, 90)) -> None:
    grey = draw_picture(*shape, seed=1)
    theirs = processor(images=Image.fromarray(grey).convert("RGB"), return_tensors="np")["pixel_values"][0]
    ours = preprocess(grey, read_preprocess(folder_checkpoint(folder), geometry=geometry))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= LIMIT * max(1, np.abs(theirs).max())


def nest(folder: Path) -> None:
    """As a processor of Transformers 5 saves it: inside `processor_config.json`, and there alone."""
    path = folder / "preprocessor_config.json"
    content = {"image_processor": json.loads(path.read_text(encoding="utf-8")), "processor_class": "CLIPProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(content), encoding="utf-8")
    path.unlink()


three = st.tuples(*[st.floats(0.05, 1)] * 3).map(list)


@pytest.mark.parametrize("kind", KINDS)
@given(
    mean=three, std=three, resample=st.sampled_from([0, 1, 2, 3]), factor=st.sampled_from([1 / 255, 1 / 127.5, 0.01, 1]),
    rescale=st.booleans(), normalize=st.booleans(), nested=st.booleans(), offset=st.booleans(), top=st.booleans(),
)  # fmt: skip
@examples(40)
def test_any_values_give_the_numbers_of_the_image_processor(
    tmp_path_factory: pytest.TempPathFactory, kind: str, mean: Any, std: Any, resample: int, factor: float,
    rescale: bool, normalize: bool, nested: bool, offset: bool, top: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("processor")
    values = {"image_mean": mean, "image_std": std, "resample": resample, "rescale_factor": factor}
    values |= {"do_rescale": rescale}
    if kind != "MobileViT":  # it says nothing of this, and does nothing
        values |= {"do_normalize": normalize}
    if kind == "EfficientNet":
        values |= {"rescale_offset": offset, "include_top": top}
    theirs = processor(kind, **values)
    theirs.save_pretrained(folder)
    if nested:
        nest(folder)
    numbers_agree(theirs, folder, KINDS[kind][0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_of_the_class_itself(kind: str, tmp_path: Path) -> None:
    geometry = KINDS[kind][0]
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")()
    theirs.save_pretrained(tmp_path)
    if kind == "MobileViT":
        with pytest.raises(ModelError, match="size = 224 is below crop_size = 256"):
            read_preprocess(folder_checkpoint(tmp_path), geometry=geometry)
    else:
        square = kind == "ConvNext"  # at its 384 pixels it does not keep the aspect ratio
        numbers_agree(theirs, tmp_path, "squash" if square else geometry, (300, 320))


@pytest.mark.parametrize("kind", KINDS)
@given(names=st.sets(st.sampled_from([
    "do_resize", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor", "do_normalize", "resample",
    "include_top", "do_pad", "size",
])), null=st.booleans(), side=st.sampled_from([{"shortest_edge": 32, "longest_edge": 40}, 40, [40, 40], ...]))  # fmt: skip
@examples(40)
def test_what_a_file_does_not_say_is_what_the_class_says(
    tmp_path_factory: pytest.TempPathFactory, kind: str, names: set[str], null: bool, side: Any
) -> None:
    folder = tmp_path_factory.mktemp("processor")
    content = {name: value for name, value in processor(kind).to_dict().items() if null or name not in names}
    content |= dict.fromkeys(names & content.keys()) | ({} if side is ... else {"size": side})
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    grey, ours = draw_picture(70, 90, seed=1), []
    for geometry in ("squash", "crop"):
        with contextlib.suppress(ModelError):
            ours.append(preprocess(grey, read_preprocess(folder_checkpoint(folder), geometry=geometry)))
    if ours:
        made = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(folder)
        theirs = made(images=Image.fromarray(grey).convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert {one.shape for one in ours} == {theirs.shape}
        assert min(np.abs(one - theirs).max() for one in ours) <= LIMIT * max(1, np.abs(theirs).max())


def test_every_other_image_processor_of_transformers_is_refused_by_name(tmp_path: Path) -> None:
    classes = {name for names in IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in names.values() if name}
    kinds = {name.removesuffix("Pil").removesuffix("ImageProcessor") for name in classes} - {*KINDS}
    assert len(kinds) > 50
    for kind in kinds - {"Siglip2", "DINOv3ViT"}:  # the one makes patches, the other has no form without torchvision
        with pytest.raises(ModelError, match=f"image processor '{kind}ImageProcessor' is not supported"):
            read_preprocess(write(tmp_path, image_processor_type=f"{kind}ImageProcessor"), geometry="squash")


def test_a_naflex_processor_makes_a_square_of_the_most_patches(tmp_path: Path) -> None:
    transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=30).save_pretrained(tmp_path)
    spec = read_preprocess(folder_checkpoint(tmp_path), geometry="squash")
    theirs = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=30)
    shapes = theirs(images=Image.new("RGB", (64, 64)), return_tensors="np")["spatial_shapes"]
    assert spec.size == 8 * shapes[0][0] == 8 * shapes[0][1]


WHOLE = {
    "CLIPProcessor": ("clip", "CLIP"),
    "SiglipProcessor": ("siglip", "Siglip"),
    "Siglip2Processor": ("siglip2", "Siglip2"),
    "VisionTextDualEncoderProcessor": ("vision-text-dual-encoder", "ViT"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_folder_that_the_whole_processor_wrote_loads(name: str, tmp_path: Path) -> None:
    family, kind = WHOLE[name]
    plain = save_checkpoint(family, tmp_path / "plain")
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "preprocessor_config.json").unlink()
    values: dict[str, Any] = {"patch_size": 8, "max_num_patches": 16} if kind == "Siglip2" else KINDS[kind][1]
    images = getattr(transformers, f"{kind}ImageProcessorPil")(**values)
    made = getattr(transformers, name)(images, transformers.AutoTokenizer.from_pretrained(TINY))
    made.save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists(), "what this version writes; the case is another otherwise"
    encoder = load_dual_encoder(str(folder), device="cpu")
    assert encoder.preprocess.size == 32
    assert encoder.fingerprint == load_dual_encoder(str(plain), device="cpu").fingerprint


def write(folder: Path, **values: Any) -> Checkpoint:
    content = {**KINDS["CLIP"][1], "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": True, **values}
    given = {name: value for name, value in content.items() if value is not ...}
    (folder / "preprocessor_config.json").write_text(json.dumps(given), encoding="utf-8")
    return folder_checkpoint(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, "do_resize = False is not supported"),
        ({"do_resize": None}, "do_resize = None is not supported"),
        ({"do_pad": True}, "do_pad = True is not supported"),
        *(({"resample": value}, "resample = .* is none of 0 nearest") for value in (4, 5, -1, "bicubic", None, True, 2.5)),
        *(({"size": value}, "size = .* is no square") for value in ({"height": 3, "width": 4}, 0, -4, "x", True, 2.5, [], {"height": 9, "width": None})),
        *(({"size": value}, "size = .* is no square") for value in ({"longest_edge": 3}, {"shortest_edge": 40, "longest_edge": 40}, None)),
        ({"size": {"height": 40, "width": 40}, "crop_size": 32}, "images become 40 x 40 before they are cut; take geometry squash"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "size = .* keeps the aspect ratio, and nothing is cut"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "image processor 'PerceiverImageProcessor' is not supported"),
        ({"keep_aspect_ratio": True}, "keep_aspect_ratio = True is not supported"),
        ({"size": ...}, "no 'size'"),
        ({"crop_size": {"height": 3, "width": 4}}, "crop_size = .* is no square"),
        ({"size": 20}, "size = 20 is below crop_size = 32"),
        *(({"image_mean": value}, "image_mean = ") for value in ([0.5], ["a"] * 3, None, [True] * 3)),
        *(({"image_std": value}, "image_std = ") for value in ([0.5, 0.5, 0], [-1.0] * 3)),
        ({"image_std": ...}, "no 'image_std'"),
        *(({"rescale_factor": value}, "rescale_factor = .* is no positive number") for value in (0, None, "1")),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"its preprocessor_config.json: {message}"):
        read_preprocess(write(tmp_path, **values), geometry="crop")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"image_processor": 3}', "\udcff"])
@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json"])
def test_files_that_say_nothing_are_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"processor_config\.json"):
        read_preprocess(folder_checkpoint(tmp_path), geometry="crop")


def test_the_nested_one_counts_where_both_files_are_as_in_transformers(tmp_path: Path) -> None:
    processor("ViT", image_mean=[0.1] * 3).save_pretrained(tmp_path)
    nest(tmp_path)
    processor("ViT", image_mean=[0.2] * 3).save_pretrained(tmp_path)
    assert read_preprocess(folder_checkpoint(tmp_path), geometry="squash").mean == (0.1, 0.1, 0.1)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}', encoding="utf-8")
    assert read_preprocess(folder_checkpoint(tmp_path), geometry="squash").mean == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("nested", [True, False])
def test_both_files_are_found_in_the_cache_of_the_hub(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor("ViT", image_mean=[0.1] * 3).save_pretrained(tmp_path)
    if nested:
        nest(tmp_path)

    def cached(repository: str, name: str) -> str:
        assert repository == "owner/name"
        if not (tmp_path / name).is_file():
            raise OSError(f"{name} is not there")
        return str(tmp_path / name)

    monkeypatch.setattr(transformers.utils, "cached_file", cached)
    hub = Checkpoint("owner/name", "owner/name", is_local=False, config=None)
    assert read_preprocess(hub, geometry="squash").mean == (0.1, 0.1, 0.1)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ModelError, match="preprocessor_config.json is missing"):
        read_preprocess(hub, geometry="squash")


@given(
    size=st.integers(1, 500), more=st.integers(0, 99), resample=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    mean=three, std=three, geometry=st.sampled_from(["squash", "crop"]),
)  # fmt: skip
@examples(40)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, size: int, more: int, geometry: str, **values: Any
) -> None:
    from thoraclip.imaging import Preprocess

    given_ = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    spec = Preprocess(size=size, geometry=geometry, short_side=size + more if geometry == "crop" else None, **given_)
    folder = tmp_path_factory.mktemp("written")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_json(spec)), encoding="utf-8")
    assert read_preprocess(folder_checkpoint(folder), geometry=geometry) == spec
