"""LoRA on every family: which layers get it, what it starts from, and that what is saved is what was trained."""

from __future__ import annotations

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
from tests.checkpoints import FAMILIES, SIDE, save_checkpoint
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer

from thoraclip.errors import ConfigError, MismatchError, ModelError
from thoraclip.models.adapter import read_note
from thoraclip.models.dropout import KeyedDropout
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.lora import LoraSettings, TunableEncoder, add_lora, resolve_targets

CLIP_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TEXTS = ("AP chest X-ray.", "a lung", "both lungs are white, and the heart is large")
ROUNDING = {"clip": 0.0, "siglip": 1e-6, "siglip2": 1e-6, "vision-text-dual-encoder": 0.0}
"""PyTorch's own attention, in SigLIP's head, rounds otherwise where its weights are frozen."""
SIGLIP_HEAD = {"fc1": ["vision_model.head.mlp.fc1"], "fc2": ["vision_model.head.mlp.fc2"]}

Features = tuple[Tensor, Tensor]


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
    if family == "vision-text-dual-encoder":
        return layers(f"vision_model.encoder.layer.N.{DINO[name]}") + layers(f"text_model.encoder.layer.N.{BERT[name]}")
    return clip_layers(name) + ([] if family == "clip" else SIGLIP_HEAD.get(name, []))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save_checkpoint(family, root / family) for family in FAMILIES}


def load(folder: Path, **settings: Any) -> DualEncoder:
    return load_dual_encoder(str(folder), precision="fp32", device="cpu", **settings)


def tune(
    folder: Path, *, seed: int = 0, scale: bool = True, bias: bool = False, checkpointing: bool = False, **settings: Any
) -> TunableEncoder:
    return add_lora(
        load(folder),
        LoraSettings(**settings),
        seed=seed,
        train_scale=scale,
        train_bias=bias,
        checkpointing=checkpointing,
    )


def shake(tuned: TunableEncoder, seed: int = 0) -> TunableEncoder:
    """As after some steps: every trainable tensor has moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(torch.empty(parameter.shape).normal_(std=0.1, generator=generator))
    return tuned


def pixels() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def features(encoder: DualEncoder) -> Features:
    with torch.no_grad():
        return encoder.image_features(pixels())[1], encoder.text_features(encoder.tokenize(TEXTS))


def close(one: Features, other: Features) -> bool:
    return all(torch.allclose(a, b, atol=1e-5, rtol=1e-5) for a, b in zip(one, other, strict=True))


def same(one: Features, other: Features) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def difference(one: Features, other: Features) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def in_train_mode(tuned: TunableEncoder) -> list[str]:
    """Modules that would behave otherwise in training; keyed dropout does not look."""
    modules = tuned.encoder.model.named_modules()
    return [n for n, m in modules if m.training and not isinstance(m, KeyedDropout)]


def pairwise_loss(encoder: DualEncoder) -> Tensor:
    image, text = encoder.image_features(pixels())[1], encoder.text_features(encoder.tokenize(TEXTS))
    return (image @ text.T).square().sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_names_find_the_layers_of_every_family(family: str, checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints[family])
    for name in CLIP_NAMES:
        assert resolve_targets(encoder, [name], "both") == sorted(expected_targets(family, name))


def test_an_architectures_own_names_are_taken_as_they_are(checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints["vision-text-dual-encoder"])
    assert resolve_targets(encoder, ["query"], "text") == layers("text_model.encoder.layer.N.attention.self.query")
    assert resolve_targets(encoder, ["o_proj", "key"], "text") == sorted(
        layers("text_model.encoder.layer.N.attention.output.dense")
        + layers("text_model.encoder.layer.N.attention.self.key")
    )
    assert resolve_targets(encoder, ["pooler.dense"], "text") == ["text_model.pooler.dense"]


def test_a_name_is_the_whole_end_of_a_modules_name(checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints["clip"])
    for half in ("proj", "c1", "q.proj"):
        with pytest.raises(ConfigError, match="none of them is in the vision tower"):
            resolve_targets(encoder, [half], "both")


@pytest.mark.parametrize(
    ("names", "towers", "message"),
    [
        (["q_prj"], "both", r"target_modules = \['q_prj'\]: none of them is in the vision tower of '.*clip'; its linear "
         r"layers are: mlp.fc1, mlp.fc2, self_attn.k_proj, self_attn.out_proj, self_attn.q_proj, self_attn.v_proj$"),
        (["query", "nothing"], "text", "none of them is in the text tower"),
    ],
)  # fmt: skip
def test_a_name_that_is_nowhere_is_an_error_with_those_that_are(
    names: list[str], towers: str, message: str, checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_targets(load(checkpoints["clip"]), names, towers)


def test_a_name_that_only_one_tower_has_is_an_error_too(checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints["vision-text-dual-encoder"])
    with pytest.raises(ConfigError, match="vision tower of .*attention.k_proj, .*mlp.fc1"):
        resolve_targets(encoder, ["intermediate.dense"], "both")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_resolved_layers_get_lora_and_no_others(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """From twenty layers on PEFT shortens the list to endings, which must not catch more."""
    names = ("q_proj", "k_proj", "v_proj", "fc1", "fc2")
    tuned = tune(checkpoints[family], target_modules=names, projections="freeze")
    shake(tuned).save(tmp_path / "adapter", {})
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoints[family]), tmp_path / "adapter")
    expected = sorted({n for name in names for n in expected_targets(family, name)})
    for model in (tuned.encoder.model, again):
        found = [n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")]
        assert sorted(found) == expected


@pytest.mark.parametrize(
    ("family", "projections", "trained"),
    [
        ("clip", "auto", False), ("clip", "train", True), ("siglip", "auto", False),
        ("vision-text-dual-encoder", "auto", True), ("vision-text-dual-encoder", "freeze", False),
    ],
)  # fmt: skip
def test_projections_are_trained_where_the_towers_were_never_aligned(
    family: str, projections: str, trained: bool, checkpoints: dict[str, Path]
) -> None:
    names = tune(checkpoints[family], projections=projections).encoder_parameters
    whole = sorted(n for n in names if "lora_" not in n)
    assert [re.sub(r".*model\.(\w+_projection)\..*", r"\1", n) for n in whole] == (
        ["text_projection", "visual_projection"] if trained else []
    )


def test_a_projection_that_is_not_there_cannot_be_trained(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="projections = 'train': model '.*' has none; set projections = freeze"):
        tune(checkpoints["siglip"], projections="train")


@pytest.mark.parametrize(
    ("family", "scale", "bias"),
    [("clip", False, False), ("siglip", True, True), ("vision-text-dual-encoder", True, False)],
)
def test_only_lora_projections_and_the_losss_numbers_are_trainable(
    family: str, scale: bool, bias: bool, checkpoints: dict[str, Path]
) -> None:
    tuned = tune(checkpoints[family], scale=scale, bias=bias)
    for name, parameter in tuned.encoder.model.named_parameters():
        mine = "lora_" in name or "modules_to_save" in name
        assert parameter.requires_grad == mine, name
    assert sorted(tuned.loss_parameters) == ["bias"] * bias + ["log_scale"] * scale
    assert tuned.parameters.keys() == tuned.encoder_parameters.keys() | tuned.loss_parameters.keys()
    assert list(tuned.encoder_parameters) == sorted(tuned.encoder_parameters)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_other_tower_stays_as_it_was(tower: str, checkpoints: dict[str, Path]) -> None:
    base = features(load(checkpoints["clip"]))
    found = resolve_targets(load(checkpoints["clip"]), ["q_proj", "fc2"], tower)
    assert len(found) == 4 and all(n.startswith(f"{tower}_model.") for n in found)
    tuned = shake(tune(checkpoints["clip"], towers=tower))
    assert all(f".{tower}_model." in n for n in tuned.encoder_parameters)
    assert same(features(tuned.encoder), base) == [tower != "vision", tower != "text"]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes_before_the_first_step(family: str, checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints[family])
    expected = features(encoder)
    tuned = tune(checkpoints[family])
    assert difference(features(tuned.encoder), expected) <= ROUNDING[family]
    assert tuned.base == encoder.fingerprint
    assert in_train_mode(tuned) == []
    assert float(tuned.log_scale.detach()) == float(encoder.model.logit_scale)
    assert float(tuned.bias) == (float(encoder.model.logit_bias) if hasattr(encoder.model, "logit_bias") else 0.0)
    tuned.vision_key.use(0, torch.arange(3))
    tuned.text_key.use(0, torch.arange(3))
    assert difference(features(tuned.encoder), expected) <= ROUNDING[family], "with masks neither, since B is zero"


def test_initial_values_depend_on_the_seed_alone(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["vision-text-dual-encoder"]
    torch.manual_seed(1)
    first = tune(folder, seed=7).snapshot()
    torch.manual_seed(2)
    second, other = tune(folder, seed=7).snapshot(), tune(folder, seed=8).snapshot()
    assert first.keys() == second.keys() == other.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, other[name]) != ("lora_A" in name), name


def test_the_towers_do_not_change_what_a_layer_starts_from_but_every_layer_has_its_own(
    checkpoints: dict[str, Path],
) -> None:
    start = {n: v for n, v in tune(checkpoints["clip"], target_modules=("q_proj",)).snapshot().items() if "lora_A" in n}
    values = list(start.values())
    assert len(values) == 4
    for i, one in enumerate(values):
        assert 0.7 / 4 < float(one.abs().max()) <= 1 / 4, "uniform up to 1 / sqrt(16 inputs)"
        assert not any(torch.equal(one, other) for other in values[i + 1 :])


def test_the_global_streams_are_left_alone(checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints["clip"])
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002  the global one
    add_lora(encoder, LoraSettings(), seed=0)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize(
    ("family", "rslora", "expected"),
    [*((family, True, 12 / math.sqrt(3)) for family in FAMILIES), ("clip", False, 12 / 3)],
)
def test_a_layer_computes_w_plus_scale_times_b_a(
    family: str, rslora: bool, expected: float, checkpoints: dict[str, Path]
) -> None:
    """Against the plain model with the product added to its weights by hand."""
    tuned = shake(tune(checkpoints[family], rank=3, alpha=12.0, rslora=rslora))
    plain = load(checkpoints[family])
    weights = plain.model.state_dict()
    for name, value in tuned.snapshot().items():
        short = name.removeprefix("base_model.model.")
        if "lora_A" in name:
            b = tuned.snapshot()[name.replace("lora_A", "lora_B")]
            weights[short.replace("lora_A.default.", "")] += expected * b @ value
        elif "modules_to_save" in name:
            weights[short.replace("modules_to_save.default.", "")].copy_(value)
    assert close(features(tuned.encoder), features(plain))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_drops_by_a_number_and_a_tower_of_its_own(family: str, checkpoints: dict[str, Path]) -> None:
    tuned = tune(checkpoints[family], lora_dropout=0.3)
    found = {n: m for n, m in tuned.encoder.model.named_modules() if isinstance(m, KeyedDropout)}
    assert len(found) == len(resolve_targets(load(checkpoints[family]), LoraSettings().target_modules, "both"))
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


def test_a_snapshot_is_a_copy_that_can_be_restored(checkpoints: dict[str, Path]) -> None:
    tuned = tune(checkpoints["vision-text-dual-encoder"], bias=True)
    start, before = tuned.snapshot(), features(tuned.encoder)
    assert start.keys() == tuned.parameters.keys()
    shake(tuned)
    assert same(features(tuned.encoder), before) == [False, False]
    moved = tuned.snapshot()
    assert not any(torch.equal(moved[n], start[n]) for n in start)
    tuned.restore(start)
    assert same(features(tuned.encoder), before) == [True, True]
    assert all(torch.equal(v, start[n]) for n, v in tuned.snapshot().items())
    assert all(p.requires_grad for p in tuned.parameters.values())


def test_the_scale_is_held_below_its_limit_where_it_is_trained(checkpoints: dict[str, Path]) -> None:
    tuned, fixed = tune(checkpoints["clip"]), tune(checkpoints["clip"], scale=False)
    for each in (tuned, fixed):
        each.log_scale.data.fill_(6.0)
        each.clamp_scale(100)
    assert float(tuned.log_scale.exp()) == pytest.approx(100, rel=1e-5)
    assert float(fixed.log_scale) == 6.0
    tuned.log_scale.data.fill_(2.0)
    tuned.clamp_scale(100)
    assert float(tuned.log_scale.detach()) == 2.0


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_what_was_saved(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tuned = shake(tune(checkpoints[family]))
    expected = features(tuned.encoder)
    tuned.save(tmp_path / "adapter", {})
    merged = load(checkpoints[family], adapter=str(tmp_path / "adapter"))
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoints[family]), tmp_path / "adapter").eval()
    with torch.no_grad():
        image = plain.get_image_features(**merged._vision_inputs(pixels())).pooler_output
        text = plain.get_text_features(**merged.tokenize(TEXTS)).pooler_output
    assert close((image, text), expected)
    assert close(features(merged), expected)
    assert not close(features(load(checkpoints[family])), expected)


def test_a_saved_folder_is_whole_and_replaces_the_one_before(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tuned, folder = shake(tune(checkpoints["clip"])), tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("old", encoding="utf-8")
    (tmp_path / "run" / ".adapter.part").mkdir()
    (tmp_path / "run" / ".adapter.part" / "torn").touch()
    tuned.save(folder, {"fold": 3})
    assert list(content(folder)) == ["adapter_config.json", "adapter_model.safetensors", "thoraclip.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]
    note = read_note(folder)
    assert note is not None
    assert (note.base, dict(note.facts)) == (tuned.base, {"fold": 3})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(checkpoints["clip"])
    assert config["inference_mode"] is True


@pytest.mark.parametrize("family", ["siglip2", "vision-text-dual-encoder"])
def test_saving_twice_gives_the_same_bytes(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tuned = shake(tune(checkpoints[family]))
    tuned.save(tmp_path / "one", {"a": 1})
    tuned.save(tmp_path / "two", {"a": 1})
    shake(tune(checkpoints[family])).save(tmp_path / "three", {"a": 1})
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "three")


@pytest.mark.parametrize("names", [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "fc1", "fc2")])
def test_what_peft_keeps_as_a_set_is_saved_in_order(
    names: tuple[str, ...], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Sets have another order in every process; the bytes do not."""
    tune(checkpoints["vision-text-dual-encoder"], target_modules=names).save(tmp_path, {"fold": 0})
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    for name in ("target_modules", "modules_to_save"):
        assert len(config[name]) > 1 and config[name] == sorted(config[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scale_and_the_bias_come_back_from_the_note(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tuned = tune(checkpoints[family], bias=True)
    tuned.log_scale.data.fill_(3.25)
    tuned.bias.data.fill_(-7.5)
    tuned.save(tmp_path / "adapter", {})
    merged = load(checkpoints[family], adapter=str(tmp_path / "adapter"))
    assert float(merged.model.logit_scale) == 3.25
    assert merged.logit_scale == pytest.approx(math.exp(3.25), rel=1e-6)
    assert float(getattr(merged.model, "logit_bias", -7.5)) == -7.5


@pytest.mark.parametrize("family", ["siglip", "vision-text-dual-encoder"])
def test_a_share_of_an_adapter_is_the_same_share_of_every_weight(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    shake(tune(checkpoints[family], bias=True)).save(tmp_path / "adapter", {})
    base = load(checkpoints[family])
    none, half, whole = (
        load(checkpoints[family], adapter=str(tmp_path / "adapter"), adapter_scale=s) for s in (0, 0.5, 1)
    )
    assert difference(features(none), features(base)) <= ROUNDING[family]
    assert none.logit_scale == base.logit_scale and none.fingerprint == base.fingerprint
    assert same(features(whole), features(load(checkpoints[family], adapter=str(tmp_path / "adapter")))) == [True, True]
    states = [encoder.model.state_dict() for encoder in (none, half, whole)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    moved = 0
    for name, value in states[1].items():
        assert torch.allclose(value, (states[0][name] + states[2][name]) / 2, atol=1e-6), name
        moved += not torch.equal(states[0][name], states[2][name])
    assert moved > 16
    assert len({none.fingerprint, half.fingerprint, whole.fingerprint}) == 3


def test_an_adapter_of_another_base_of_the_same_architecture_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tune(checkpoints["clip"]).save(tmp_path / "adapter", {})
    other = save_checkpoint("clip", tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="other weights than those of model '.*other'.* says: .*clip"):
        load(other, adapter=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "thoraclip.json").unlink()
    load(other, adapter=str(tmp_path / "adapter"))  # of another program's nothing is known


def test_an_adapter_of_another_architecture_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tune(checkpoints["siglip"]).save(tmp_path / "adapter", {})
    with pytest.raises(MismatchError, match="other weights"):
        load(checkpoints["clip"], adapter=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "thoraclip.json").unlink()
    with pytest.raises(ModelError, match="does not fit model"):
        load(checkpoints["clip"], adapter=str(tmp_path / "adapter"))


def test_a_note_that_cannot_be_read_or_is_of_a_newer_version_is_an_error(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tune(checkpoints["clip"]).save(tmp_path, {})
    file = tmp_path / "thoraclip.json"
    newer = json.loads(file.read_text(encoding="utf-8")) | {"schema": 2, "weather": "fine"}
    unreadable = dict.fromkeys(("{", '{"schema": 1}', "[]"), "thoraclip.json is not readable")
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


@pytest.mark.parametrize(("family", "checkpointing"), [("clip", False), *((family, True) for family in FAMILIES)])
def test_checkpointing_computes_each_layer_again_and_the_same(
    family: str, checkpointing: bool, checkpoints: dict[str, Path]
) -> None:
    """And every trainable tensor gets a gradient: PyTorch's own attention reads its output layer's weights past its forward."""
    plain = shake(tune(checkpoints[family], target_modules=CLIP_NAMES))
    tuned = shake(tune(checkpoints[family], target_modules=CLIP_NAMES, checkpointing=checkpointing))
    told = in_train_mode(tuned)
    kinds = [n for n, m in tuned.encoder.model.named_modules() if isinstance(m, GradientCheckpointingLayer)]
    assert told == (kinds if checkpointing else []) and len(kinds) == 4
    assert same(features(tuned.encoder), features(plain.encoder)) == [True, True]
    for each in (plain, tuned):
        each.vision_key.use(2, torch.tensor([5, 6, 7]))
        each.text_key.use(2, torch.tensor([1, 2, 3]))
    calls = count_queries(tuned.encoder.model)
    loss = pairwise_loss(tuned.encoder)
    once = sorted(calls)
    assert len(once) == len(set(once)) == 4
    loss.backward()
    assert sorted(calls) == sorted(once * 2 if checkpointing else once)
    pairwise_loss(plain.encoder).backward()
    for name, parameter in tuned.encoder_parameters.items():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
        assert torch.allclose(parameter.grad, plain.encoder_parameters[name].grad, rtol=1e-5, atol=1e-7), name  # type: ignore[arg-type]


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
        ({"rank": 0}, "rank = 0, alpha = 16.0: both must be positive"),
        ({"alpha": -1.0}, "alpha = -1.0"),
        ({"lora_dropout": 1.0}, "lora_dropout = 1.0: a number from 0 to below 1"),
        ({"target_modules": ()}, r"target_modules = \[\]: name one linear layer or more"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraSettings(**values)
