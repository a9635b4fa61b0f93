"""LoRA on every family: which layers get it, what it starts from, and that what is saved is what was trained."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tests.checkpoints import FAMILIES, SIDE, TOWERS, save_checkpoint, save_tower
from tests.conftest import files
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer

from thoraclip.errors import ConfigError, InputError, MismatchError, ModelError
from thoraclip.models.dropout import KeyedDropout
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder, load_vision_encoder
from thoraclip.models.files import read_note
from thoraclip.models.lora import LoraSettings, TunableEncoder, add_lora, check_lora, resolve_targets

DUAL = "vision-text-dual-encoder"
CLIP_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TEXTS = ("AP chest X-ray.", "a lung", "both lungs are white, and the heart is large")
ROUNDING = {"clip": 0.0, "siglip": 1e-6, "siglip2": 1e-6, DUAL: 0.0}
"""PyTorch's own attention, in SigLIP's head, rounds otherwise where its weights are frozen."""
PIXELS = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
SIGLIP_HEAD = {"fc1": ["vision_model.head.mlp.fc1"], "fc2": ["vision_model.head.mlp.fc2"]}

Features = tuple[Tensor, Tensor]


def snapshot(tuned: TunableEncoder) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in tuned.parameters.items()}


def layers(pattern: str) -> list[str]:
    """A name in both layers of a tower."""
    return [pattern.replace("N", str(n)) for n in range(2)]


def clip_layers(name: str) -> list[str]:
    inner = f"self_attn.{name}" if name.endswith("proj") else f"mlp.{name}"
    return layers(f"vision_model.encoder.layers.N.{inner}") + layers(f"text_model.encoder.layers.N.{inner}")


DINO = {
    "q_proj": "attention.q_proj", "k_proj": "attention.k_proj", "v_proj": "attention.v_proj",
    "out_proj": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip
BERT = {
    "q_proj": "attention.self.query", "k_proj": "attention.self.key", "v_proj": "attention.self.value",
    "out_proj": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense",
}  # fmt: skip


def expected_targets(family: str, name: str) -> list[str]:
    if family == DUAL:
        return layers(f"vision_model.encoder.layer.N.{DINO[name]}") + layers(f"text_model.encoder.layer.N.{BERT[name]}")
    return clip_layers(name) + ([] if family == "clip" else SIGLIP_HEAD.get(name, []))


def load(folder: Path, **settings: Any) -> DualEncoder:
    return load_dual_encoder(str(folder), precision="fp32", device="cpu", **settings)


def tune(folder: Path, *, seed: int = 0, train_bias: bool = False, **settings: Any) -> TunableEncoder:
    how = {name: settings.pop(name) for name in ("train_scale", "checkpointing") if name in settings}
    return add_lora(load(folder), LoraSettings(**settings), seed=seed, train_bias=train_bias, **how)


def shake(tuned: TunableEncoder, seed: int = 0) -> TunableEncoder:
    """As after some steps: every trainable tensor has moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(torch.empty(parameter.shape).normal_(std=0.1, generator=generator))
    return tuned


def features(encoder: DualEncoder) -> Features:
    with torch.no_grad():
        return encoder.image_features(PIXELS)[1], encoder.text_features(encoder.tokenize(TEXTS))


def close(one: Features, other: Features, tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(a, b, atol=tolerance, rtol=tolerance) for a, b in zip(one, other, strict=True))


def same(one: Features, other: Features) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def in_train_mode(tuned: TunableEncoder) -> list[str]:
    """Modules that would behave otherwise in training; keyed dropout does not look."""
    modules = tuned.encoder.model.named_modules()
    return [n for n, m in modules if m.training and not isinstance(m, KeyedDropout)]


def pairwise_loss(encoder: DualEncoder) -> Tensor:
    image, text = encoder.image_features(PIXELS)[1], encoder.text_features(encoder.tokenize(TEXTS))
    return (image @ text.T).square().sum()


BERT_LAYER = "text_model.encoder.layer.N"


@pytest.mark.parametrize(
    ("family", "names", "towers", "expected"),
    [
        (DUAL, ["query"], "text", layers(f"{BERT_LAYER}.attention.self.query")),
        (DUAL, ["o_proj", "key"], "text",
         sorted(layers(f"{BERT_LAYER}.attention.output.dense") + layers(f"{BERT_LAYER}.attention.self.key"))),
        (DUAL, ["pooler.dense"], "text", ["text_model.pooler.dense"]),
        ("clip", ["fc2", "q_proj"], "text", sorted(clip_layers("q_proj")[2:] + clip_layers("fc2")[2:])),
        ("clip", ["fc2", "nothing"], "vision", r"target_modules: 'nothing' is no linear layer of .*clip'; they are: mlp.fc1"),
        (DUAL, ["query", "mlp.fc1", "nothing"], "both", "target_modules: 'nothing' is no linear layer"),
        (DUAL, ["query", "mlp.fc2", "q_proj"], "both",
         sorted(expected_targets(DUAL, "q_proj") + layers("vision_model.encoder.layer.N.mlp.fc2"))),
        (DUAL, ["intermediate.dense"], "both", "vision tower of .*attention.k_proj, .*mlp.fc1"),
        ("clip", ["q_prj"], "both",
         r"target_modules = \['q_prj'\]: none of them is in the vision tower of '.*clip'; its linear layers are: "
         r"mlp.fc1, mlp.fc2, self_attn.k_proj, self_attn.out_proj, self_attn.q_proj, self_attn.v_proj$"),
        ("clip", ["query", "nothing"], "text", "none of them is in the text tower"),
        ("clip", ["proj", "c1", "q.proj"], "both", "none of them is in the vision tower"),
    ],
)  # fmt: skip
def test_a_name_is_the_whole_end_of_a_layers_own_name_in_every_tower_that_is_tuned(
    family: str, names: list[str], towers: str, expected: list[str] | str, checkpoints: dict[str, Path]
) -> None:
    encoder = load(checkpoints[family])
    if isinstance(expected, list):
        assert resolve_targets(encoder, LoraSettings(target_modules=tuple(names), towers=towers)) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            resolve_targets(encoder, LoraSettings(target_modules=tuple(names), towers=towers))


def test_a_rank_above_that_of_every_layer_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="rank = 65536: the layers of '.*clip' have at most rank [0-9]+; lower it"):
        tune(checkpoints["clip"], rank=65_536)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_resolved_layers_get_lora_and_no_others(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """From twenty layers on PEFT shortens the list to endings, which must not catch more."""
    for name in CLIP_NAMES:
        assert resolve_targets(load(checkpoints[family]), LoraSettings(target_modules=(name,))) == sorted(
            expected_targets(family, name)
        )
    tuned = tune(checkpoints[family], target_modules=CLIP_NAMES, projections="freeze")
    shake(tuned).save(tmp_path / "adapter", {})
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoints[family]), tmp_path / "adapter")
    expected = sorted({n for name in CLIP_NAMES for n in expected_targets(family, name)})
    for model in (tuned.encoder.model, again):
        found = [n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")]
        assert sorted(found) == expected


@pytest.mark.parametrize(
    ("family", "projections", "trained", "numbers"),
    [
        ("clip", "auto", False, []),
        ("clip", "train", True, ["bias"]),
        ("siglip", "auto", False, ["bias", "log_scale"]),
        (DUAL, "auto", True, ["log_scale"]),
        (DUAL, "freeze", False, ["log_scale"]),
    ],
)
def test_lora_the_losss_numbers_and_projections_of_towers_that_were_never_aligned_are_trained(
    family: str, projections: str, trained: bool, numbers: list[str], checkpoints: dict[str, Path]
) -> None:
    is_scale, is_bias = "log_scale" in numbers, "bias" in numbers
    tuned = tune(checkpoints[family], projections=projections, train_scale=is_scale, train_bias=is_bias)
    names = [n for n, p in tuned.encoder.model.named_parameters() if p.requires_grad]
    assert list(tuned.encoder_parameters) == sorted(names)
    whole = sorted(n for n in names if "lora_" not in n)
    assert [re.sub(r".*model\.(\w+_projection)\.modules_to_save\..*", r"\1", n) for n in whole] == (
        ["text_projection", "visual_projection"] if trained else []
    )
    assert any("lora_A" in n for n in names) and any("lora_B" in n for n in names)
    assert sorted(tuned.loss_parameters) == numbers
    assert tuned.parameters.keys() == tuned.encoder_parameters.keys() | tuned.loss_parameters.keys()


def test_a_projection_that_is_not_there_cannot_be_trained(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="projections = 'train': model '.*' has none; set projections = freeze"):
        tune(checkpoints["siglip"], projections="train")


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_other_tower_stays_as_it_was(tower: str, checkpoints: dict[str, Path]) -> None:
    tuned = shake(tune(checkpoints["clip"], towers=tower))
    assert all(f".{tower}_model." in n for n in tuned.encoder_parameters)
    assert same(features(tuned.encoder), features(load(checkpoints["clip"]))) == [tower != "vision", tower != "text"]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes_before_the_first_step(family: str, checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints[family])
    expected = features(encoder)
    tuned = tune(checkpoints[family])
    assert close(features(tuned.encoder), expected, ROUNDING[family])
    assert tuned.base == encoder.fingerprint
    assert in_train_mode(tuned) == []
    assert float(tuned.log_scale.detach()) == float(encoder.model.logit_scale)
    assert float(tuned.bias) == (float(encoder.model.logit_bias) if hasattr(encoder.model, "logit_bias") else 0.0)
    tuned.vision_key.use(0, torch.arange(3))
    tuned.text_key.use(0, torch.arange(3))
    assert close(features(tuned.encoder), expected, ROUNDING[family]), "with masks neither, since B is zero"


def test_initial_values_depend_on_the_seed_alone_and_every_layer_has_its_own(checkpoints: dict[str, Path]) -> None:
    def streams() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002

    torch.manual_seed(1)
    encoder, before = load(checkpoints[DUAL]), streams()
    first = snapshot(add_lora(encoder, LoraSettings(), seed=7))
    assert streams() == before, "the global ones are left alone"
    torch.manual_seed(2)
    second, other = (snapshot(tune(checkpoints[DUAL], seed=seed)) for seed in (7, 8))
    assert first.keys() == second.keys() == other.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, other[name]) != ("lora_A" in name), name
    values = [value for name, value in first.items() if "lora_A" in name and value.shape == (8, 16)]
    assert len(values) >= 4
    for i, one in enumerate(values):
        assert 0.7 / 4 < float(one.abs().max()) <= 1 / 4, "uniform up to 1 / sqrt(16 inputs)"
        assert not any(torch.equal(one, other) for other in values[i + 1 :])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_drops_by_a_number_and_a_tower_of_its_own(family: str, checkpoints: dict[str, Path]) -> None:
    tuned = tune(checkpoints[family], lora_dropout=0.3)
    found = {n: m for n, m in tuned.encoder.model.named_modules() if isinstance(m, KeyedDropout)}
    assert len(found) == len(resolve_targets(load(checkpoints[family]), LoraSettings()))
    assert sorted(m.module for m in found.values()) == list(range(len(found)))
    for name, module in found.items():
        assert module.key is (tuned.text_key if ".text_model." in name else tuned.vision_key)
        assert module.probability == 0.3
    assert tuned.text_key is not tuned.vision_key


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_in_force_until_they_are_cleared(family: str, checkpoints: dict[str, Path]) -> None:
    tuned = shake(tune(checkpoints[family], lora_dropout=0.5, seed=4))
    still = features(tuned.encoder)
    tuned.vision_key.use(3, torch.arange(3))
    assert same(features(tuned.encoder), still) == [False, True]
    tuned.text_key.use(3, torch.arange(3))
    masked = features(tuned.encoder)
    assert same(masked, still) == [False, False]
    assert same(features(tuned.encoder), masked) == [True, True]
    tuned.clear_masks()
    assert same(features(tuned.encoder), still) == [True, True]


@pytest.mark.parametrize(("trained", "start", "end"), [(True, 6.0, math.log(100)), (True, 2.0, 2.0), (False, 6.0, 6.0)])
def test_a_scale_that_is_trained_is_held_below_its_limit(
    trained: bool, start: float, end: float, checkpoints: dict[str, Path]
) -> None:
    tuned = tune(checkpoints["clip"], train_scale=trained)
    tuned.log_scale.data.fill_(start)
    assert tuned.clamp_scale(100) == pytest.approx(math.exp(end), rel=1e-5)
    assert float(tuned.log_scale.detach()) == pytest.approx(end, rel=1e-6)
    tuned.centre_bias(0.25)
    assert float(tuned.bias.detach()) == pytest.approx(-0.25 * math.exp(end), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_what_was_saved(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """And ours the numbers of the loss besides."""
    tuned = shake(tune(checkpoints[family], train_bias=True))
    expected = features(tuned.encoder)
    tuned.save(tmp_path / "adapter", {})
    merged = load(checkpoints[family], adapter=str(tmp_path / "adapter"))
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoints[family]), tmp_path / "adapter").eval()
    with torch.no_grad():
        image = plain.get_image_features(**merged._vision_inputs(PIXELS)).pooler_output
        text = plain.get_text_features(**merged.tokenize(TEXTS)).pooler_output
    assert close((image, text), expected)
    assert close(features(merged), expected)
    assert not close(features(load(checkpoints[family])), expected)
    log_scale, bias = float(tuned.log_scale.detach()), float(tuned.bias.detach())
    assert (float(merged.model.logit_scale), float(getattr(merged.model, "logit_bias", bias))) == (log_scale, bias)
    assert merged.logit_scale == pytest.approx(math.exp(log_scale), rel=1e-6) != load(checkpoints[family]).logit_scale


def test_a_saved_folder_is_whole_and_replaces_the_one_before(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    settings = {"r": 3, "lora_alpha": 12.0, "use_rslora": False, "lora_dropout": 0.3, "bias": "none"}
    tuned = shake(tune(checkpoints["clip"], rank=3, alpha=12.0, rslora=False, lora_dropout=0.3))
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    (folder / "old.txt").touch()
    for marked in (False, True):
        if marked:
            (folder / "adapter_config.json").touch()
        with pytest.raises(InputError, match="adapter: holds other things than what is to be written"):
            tuned.save(folder, {"fold": 3})
    (folder / "old.txt").unlink()
    tuned.save(folder, {"fold": 3})
    assert list(files(folder)) == ["adapter_config.json", "adapter_model.safetensors", "thoraclip.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]
    note = read_note(folder)
    assert note is not None
    assert (note.base, dict(note.facts)) == (tuned.base, {"fold": 3})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": str(checkpoints["clip"]), "inference_mode": True}
    assert {name: config[name] for name in settings} == settings


@pytest.mark.parametrize("names", [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "fc1", "fc2")])
def test_equal_weights_give_equal_bytes(names: tuple[str, ...], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """What PEFT keeps as a set, whose order is another one in every process, is saved in order."""
    tuned, again = (shake(tune(checkpoints[DUAL], target_modules=names)) for _ in range(2))
    for name, one in {"one": tuned, "two": tuned, "three": again}.items():
        one.save(tmp_path / name, {"a": 1})
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text(encoding="utf-8"))
    for name in ("target_modules", "modules_to_save"):
        assert len(config[name]) > 1 and config[name] == sorted(config[name]), name


OWN_NAMES: dict[str, tuple[str, ...]] = {
    "dinov3_vit": ("q_proj", "up_proj", "down_proj"),
    "convnext": ("pwconv1", "pwconv2"),
    "convnextv2": ("pwconv1", "pwconv2"),
    "dinov3_convnext": ("pointwise_conv1", "pointwise_conv2"),
    "swinv2": ("query", "intermediate.dense", "output.dense"),
}
"""Of a vision tower, what q_proj, fc1 and fc2 are; the others have these very names."""


@pytest.mark.parametrize("name", [name for name in TOWERS if name != "efficientnet"])
def test_lora_on_a_vision_tower_works_or_says_what_there_is(name: str, tmp_path: Path) -> None:
    """Masks included, and plain PEFT loads what was saved on the plain Transformers model."""
    folder = save_tower(name, tmp_path / name)
    encoder = load_vision_encoder(str(folder), precision="fp32")
    names = ("fc1", "fc2") if "convnext" in name else ("q_proj", "fc1", "fc2")
    settings = LoraSettings(target_modules=names, towers="vision", lora_dropout=0.3)
    if name.startswith(("resnet", "regnet", "mobilenet")):
        with pytest.raises(ConfigError, match="none of them is in the vision tower of '.*'; it has no linear layer"):
            add_lora(encoder, settings, seed=0)
        with pytest.raises(ConfigError, match="it has no linear layer"):
            check_lora(str(folder), settings)
        return
    targets = resolve_targets(encoder, settings)
    own = OWN_NAMES.get(name, names)
    assert (
        targets and all(any(t.endswith(end) for t in targets) for end in own) and all(t.endswith(own) for t in targets)
    )
    expected = encoder.image_features(PIXELS)[0]
    tuned = add_lora(encoder, settings, seed=0)
    assert close((tuned.encoder.image_features(PIXELS)[0],), (expected,)), "B is zero"
    shake(tuned)
    tuned.vision_key.use(1, torch.arange(3))
    masked = tuned.encoder.image_features(PIXELS)[0]
    tuned.clear_masks()
    moved = tuned.encoder.image_features(PIXELS)[0]
    assert not close((masked,), (moved,)) and not close((moved,), (expected,))
    tuned.save(tmp_path / "adapter", {})
    more = {"mask_ratio": 0.0} if name == "vit_mae" else {}  # it would leave patches out
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder, **more), tmp_path / "adapter").eval()
    plain = dataclasses.replace(load_vision_encoder(str(folder), precision="fp32"), model=model)
    assert close((plain.image_features(PIXELS)[0],), (moved,))
    assert close((load_vision_encoder(str(folder), adapter=str(tmp_path / "adapter"), precision="fp32").image_features(PIXELS)[0],), (moved,))  # fmt: skip


def test_the_last_blocks_of_each_tuned_tower_get_lora(checkpoints: dict[str, Path]) -> None:
    for towers, begins in (("both", ("vision", "text")), ("text", ("text",))):
        targets = resolve_targets(load(checkpoints["clip"]), LoraSettings(lora_blocks=1, towers=towers))
        assert {t.rpartition(".layers.")[0] for t in targets} == {f"{b}_model.encoder" for b in begins}
        assert all(".layers.1." in t for t in targets)
    every = resolve_targets(load(checkpoints["clip"]), LoraSettings())
    assert resolve_targets(load(checkpoints["clip"]), LoraSettings(lora_blocks=2)) == every
    heads = [t for t in resolve_targets(load(checkpoints["siglip"]), LoraSettings(lora_blocks=2)) if ".head." in t]
    assert heads == [], "what follows the blocks is none of them"
    for settings in (LoraSettings(lora_blocks=3), LoraSettings(lora_blocks=9, towers="text")):
        with pytest.raises(
            ConfigError, match=r"lora_blocks = \d: the (vision|text) tower of '.*' has 2 blocks; take at"
        ):
            check_lora(str(checkpoints["clip"]), settings)
    with pytest.raises(ConfigError, match="rank = 999: the layers of '.*' have at most rank"):
        check_lora(str(checkpoints["clip"]), LoraSettings(rank=999))


@pytest.mark.parametrize("family", ["siglip", DUAL])
def test_a_share_of_an_adapter_is_the_same_share_of_every_weight(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    shake(tune(checkpoints[family], train_bias=True)).save(tmp_path / "adapter", {})
    plain = load(checkpoints[family], adapter=str(tmp_path / "adapter"))
    none, quarter, whole = (
        load(checkpoints[family], adapter=str(tmp_path / "adapter"), adapter_scale=s) for s in (0, 0.25, 1)
    )
    assert none.fingerprint == load(checkpoints[family]).fingerprint
    assert whole.fingerprint == plain.fingerprint != none.fingerprint
    states = [encoder.model.state_dict() for encoder in (none, quarter, whole)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, value in states[1].items():
        assert torch.allclose(value, 0.75 * states[0][name] + 0.25 * states[2][name], atol=1e-6), name
    assert sum(not torch.equal(value, states[2][name]) for name, value in states[0].items()) > 16


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_an_adapter_of_another_base_is_refused(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Of the same architecture, too, where its note tells; of another program's nothing is known."""
    tune(checkpoints[family]).save(tmp_path / "adapter", {})
    other = save_checkpoint("clip", tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match=f"other weights than those of model '.*other'.* says: .*{family}"):
        load(other, adapter=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "thoraclip.json").unlink()
    if family == "clip":
        load(other, adapter=str(tmp_path / "adapter"))
    else:
        with pytest.raises(ModelError, match="does not fit model"):
            load(other, adapter=str(tmp_path / "adapter"))


def test_a_note_that_cannot_be_read_or_is_of_a_newer_version_is_an_error(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tune(checkpoints["clip"]).save(tmp_path, {})
    file = tmp_path / "thoraclip.json"
    newer = json.loads(file.read_text(encoding="utf-8")) | {"schema": 2, "weather": "fine"}
    unreadable = dict.fromkeys(("{", '{"schema": 1}', "[]"), "thoraclip.json: .*; train it again")
    for text, message in (unreadable | {json.dumps(newer): "schema 2 is newer than 1; upgrade thoraclip"}).items():
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            load(checkpoints["clip"], adapter=str(tmp_path))


def count_queries(model: nn.Module) -> list[str]:
    """A list that grows by a name whenever a layer computes its attention's queries."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and name.endswith(("q_proj", "query")):
            module.register_forward_pre_hook(lambda _, __, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_computes_each_layer_again_and_the_same(family: str, checkpoints: dict[str, Path]) -> None:
    """And all that is trained gets a gradient: PyTorch's own attention reads its output layer past its forward."""
    plain = shake(tune(checkpoints[family], target_modules=CLIP_NAMES))
    tuned = shake(tune(checkpoints[family], target_modules=CLIP_NAMES, checkpointing=True))
    kinds = [n for n, m in tuned.encoder.model.named_modules() if isinstance(m, GradientCheckpointingLayer)]
    assert in_train_mode(tuned) == kinds and len(kinds) == 4
    assert same(features(tuned.encoder), features(plain.encoder)) == [True, True]
    for each in (plain, tuned):
        each.vision_key.use(2, torch.tensor([5, 6, 7]))
        each.text_key.use(2, torch.tensor([1, 2, 3]))
    calls = [count_queries(each.encoder.model) for each in (plain, tuned)]
    losses = [pairwise_loss(each.encoder) for each in (plain, tuned)]
    once = sorted(calls[0])
    assert len(once) == len(set(once)) == 4
    for loss in losses:
        loss.backward()
    assert (sorted(calls[0]), sorted(calls[1])) == (once, sorted(once * 2))
    for name, parameter in tuned.encoder_parameters.items():
        found, expected = parameter.grad, plain.encoder_parameters[name].grad
        assert found is not None and expected is not None and float(found.abs().max()) > 0, name
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7), name


def test_checkpointing_without_a_layer_that_can_is_an_error(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.modeling_layers.GradientCheckpointingLayer", nn.Bilinear)
    with pytest.raises(ConfigError, match="gradient_checkpointing: model '.*clip' has no layers that can do it"):
        tune(checkpoints["clip"], checkpointing=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"towers": "visoin"}, "unknown towers 'visoin'; did you mean 'vision'"),
        ({"projections": "frozen"}, "unknown projections 'frozen'; did you mean 'freeze'"),
        ({"target_modules": ()}, r"target_modules = \[\]: name one linear layer or more"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraSettings(**values)
