"""Baselines: the gradient of a batch against a hand-written one, the run folder, resume, processes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import save_classifier
from tests.methods.processes_worker import command, together
from torch import Tensor

from thoraclip.data.batches import pixel_cache
from thoraclip.errors import ConfigError, InputError, ModelError
from thoraclip.labels import LabelSet
from thoraclip.methods import baseline, network_scores
from thoraclip.methods.baseline import Config, SupervisedStep
from thoraclip.methods.network_scores import scores_of
from thoraclip.methods.parts import Part, parts
from thoraclip.methods.running import RunContext, run_method
from thoraclip.methods.training.folds import FoldTraining
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.zeroshot import macro_f1
from thoraclip.models.augment import AUGMENTATIONS, augment
from thoraclip.models.backbones import load_backbone, load_trained, read_trained_note
from thoraclip.runs import RunFolder
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import read_validation

pytestmark = pytest.mark.usefixtures("plain")

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))
TOLERANCE = 1e-5


def config_of(model: str, **settings: Any) -> Config:
    few = {
        "batch_size": 4, "chunk_size": 4, "steps": 6, "validate_every": 2, "learning_rate": 3e-3, "precision": "fp32",
        "val_fraction": 0.25,
    }  # fmt: skip
    return Config(model=model, **(few | settings))


def make(config: Config, manifest: Manifest, folder: Path, weight: tuple[float, ...] = (1, 1, 1)) -> SupervisedStep:
    context, rows = RunContext(manifest, RunFolder(folder), folder, folder / "px"), np.arange(len(manifest))
    step = baseline._prepare(FoldTraining(config, context, Part(None, rows, rows, rows), LABELS, ProcessGroup()))
    return dataclasses.replace(step, weight=np.broadcast_to(np.array(weight, float), step.weight.shape))


def gradients(trainee: SupervisedStep, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    loss = trainee.backward(batch)
    return loss, {n: p.grad.clone() for n, p in trainee.parameters.items() if p.grad is not None}


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of a tensor, over its norm, or over a ten-thousandth of that of all where it is next to nothing.

    The bias of attention's keys has no gradient but rounding: softmax does not see it.
    """
    least = 1e-4 * float(torch.cat([g.flatten() for g in other.values()]).norm())
    assert one.keys() == other.keys()
    return max(float((one[n] - g).norm() / g.norm().clamp(min=least)) for n, g in other.items())


def batch_of(manifest: Manifest, size: int = 12, step: int = 3) -> Batch:
    rows = np.random.default_rng(0).permutation(len(manifest))[:size].astype(np.int64)
    return Batch(step, rows, rows + 7)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("vit", {}), ("clip", {}), ("resnet", {"label_smoothing": 0.1, "augmentation": "standard"})],
)
def test_the_gradient_is_that_of_a_hand_written_step(
    kind: str, extra: dict[str, Any], models: dict[str, str], manifest: Manifest, tmp_path: Path
) -> None:
    """Weighted soft cross-entropy over the whole batch, written down sample by sample."""
    weight, smooth = (1.0, 2.0, 0.5), extra.get("label_smoothing", 0.0)
    config = config_of(models[kind], batch_size=12, chunk_size=12, **({"augmentation": "none"} | extra))
    trainee, batch = make(config, manifest, tmp_path, weight), batch_of(manifest)
    loss, found = gradients(trainee, batch)

    network = load_backbone(models[kind], LABELS, precision="fp32", device="cpu")
    greys = torch.from_numpy(
        np.array(pixel_cache(manifest, network.preprocess, tmp_path / "px").arrays["pixels"][batch.rows])
    )
    if chosen := AUGMENTATIONS[config.augmentation]:
        greys = augment(greys, chosen, seed=config.seed, step=batch.step, samples=batch.samples.tolist())
    mean, std = (torch.tensor(v)[:, None, None] for v in (network.preprocess.mean, network.preprocess.std))
    x = (greys[:, None].float() / 255 - mean) / std
    target = manifest.targets(LABELS)[batch.rows]
    network.network.train()
    log_p = network.logits(x).log_softmax(-1)
    above, below = torch.tensor(0.0), 0.0
    for i in range(12):
        for c in range(3):
            y = (1 - smooth) * (target[i] == c) + smooth / 3
            above = above - weight[c] * y * log_p[i, c]
            below += weight[c] * y
    (above / below).backward()
    assert loss == pytest.approx(float(above.detach()) / below, rel=1e-5)
    expected = {n: p.grad for n, p in network.network.named_parameters() if p.grad is not None}
    assert far(found, expected) < 1e-4


def test_chunks_add_up_to_the_batch(models: dict[str, str], manifest: Manifest, tmp_path: Path) -> None:
    base = config_of(models["vit"], batch_size=12, chunk_size=12)
    batch = batch_of(manifest)
    loss, whole = gradients(make(base, manifest, tmp_path), batch)
    for chunk in (1, 5):
        again, parts = gradients(make(dataclasses.replace(base, chunk_size=chunk), manifest, tmp_path), batch)
        assert again == pytest.approx(loss, rel=1e-5)
        assert far(parts, whole) < TOLERANCE, chunk


@pytest.mark.parametrize(("kind", "train"), [("resnet", "all"), ("clip", "head")])
def test_a_run_leaves_a_network_per_fold_and_every_image_one_score(
    kind: str, train: str, models: dict[str, str], manifest: Manifest, tmp_path: Path
) -> None:
    result = run_method("baseline", config_of(models[kind], train=train), manifest, tmp_path / "run")
    assert result is not None
    predictions, details = result
    assert predictions.image_id == tuple(manifest.column("image_id"))
    assert np.allclose(predictions.scores.sum(axis=1), 1)
    assert [entry["fold"] for entry in details["chosen"]] == [0, 1, 2]
    folds = np.array(manifest.column("fold"))
    for fold in range(3):
        folder = tmp_path / "run" / f"fold-{fold}"
        assert {f.name for f in folder.iterdir()} == {"metrics.jsonl", "model", "training.svg"}
        backbone = load_trained(folder / "model", precision="fp32", device="cpu")
        rows = np.flatnonzero(folds == fold)
        greys = pixel_cache(manifest, backbone.preprocess, tmp_path / "px").arrays["pixels"][rows]
        again = backbone.predict(backbone.expand(np.array(greys)).numpy())
        assert np.abs(again - predictions.scores[rows]).max() < 1e-5
        facts = read_trained_note(folder / "model")[2]
        held = {manifest.column("sha256")[row] for row in rows}
        assert not held & {*facts["trained_on"], *facts["chosen_on"]}


@pytest.mark.parametrize(
    ("settings", "has_head_alone", "follows"),
    [({}, False, True), ({"batch_norm": "frozen"}, False, False), ({"train": "head"}, True, False)],
)
def test_the_state_is_all_that_a_step_changes(
    settings: dict[str, Any],
    has_head_alone: bool,
    follows: bool,
    models: dict[str, str],
    manifest: Manifest,
    tmp_path: Path,
) -> None:
    """A checkpoint of it goes on to the same bytes; a frozen network keeps its weights, frozen norms their statistics."""
    config = config_of(models["resnet"], **settings)
    trainee = make(config, manifest, tmp_path)
    network, optimizer = trainee.backbone.network, baseline._optimizer(config, trainee)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for step in range(2):
        trainee.backward(batch_of(manifest, step=step))
        optimizer.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(trainee.state)
    assert (changed == {"classifier.1.weight", "classifier.1.bias"}) == has_head_alone
    assert any("convolution" in name for name in changed) != has_head_alone
    assert any("running_var" in name for name in changed) == follows


def test_the_learning_rate_falls_with_the_distance_from_the_head(
    models: dict[str, str], manifest: Manifest, tmp_path: Path
) -> None:
    config = config_of(models["vit"], layer_decay=0.5, weight_decay=0.1)
    trainee = make(config, manifest, tmp_path)
    found = {id(p): group for group in baseline._optimizer(config, trainee).param_groups for p in group["params"]}
    assert len(found) == len(trainee.parameters)
    for name, parameter in trainee.parameters.items():
        depth = 0 if "embeddings" in name else int(name.split(".")[2]) + 1 if "layers" in name else 3
        group = found[id(parameter)]
        assert (group["share"], group["lr"]) == (0.5 ** (3 - depth), config.learning_rate), name
        assert group["weight_decay"] == (0.1 if parameter.dim() > 1 else 0.0), name


class StopHereError(Exception):
    """What a test wanted to know is known."""


def test_the_settings_reach_the_network(
    models: dict[str, str], split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is made, and where it is loaded to score."""
    asked: list[Any] = []

    def stop(*arguments: Any, **given: Any) -> Any:
        asked.append((arguments, given))
        raise StopHereError

    config = config_of(models["vit"], pretrained=False, seed=5, geometry="pad", remedy="clahe", precision="bf16")
    (part,) = parts(split_manifest, LABELS, val_fraction=0.25, seed=0)
    context = RunContext(split_manifest, RunFolder(tmp_path), tmp_path, progress=print)
    training = FoldTraining(config, context, part, LABELS, ProcessGroup())
    monkeypatch.setattr(baseline, "load_backbone", stop)
    with pytest.raises(StopHereError):
        baseline._prepare(training)
    assert asked.pop() == (
        (models["vit"], LABELS),
        {
            "pretrained": False,
            "seed": 5,
            "geometry": "pad",
            "remedy": "clahe",
            "precision": "bf16",
            "device": str(training.group.device),
        },
    )
    network = SimpleNamespace(labels=LABELS, preprocess="a spec")
    monkeypatch.setattr(baseline, "load_trained", lambda *place, **given: asked.append((*place, given)) or network)
    monkeypatch.setattr(baseline, "scores_of", lambda *arguments, **given: (*arguments, given))
    monkeypatch.setattr(baseline, "compute_of", lambda *arguments, **given: (len(arguments[2]), given["runtime"]))
    monkeypatch.setattr(FoldTraining, "images", lambda _, spec: f"by {spec}")
    with_progress = {"progress": print, "compute": (len(part.test) + len(part.val), "auto")}
    assert baseline._score(training) == (
        (network, "by a spec", part.test, with_progress), (network, "by a spec", part.val, with_progress)
    )  # fmt: skip
    assert asked == [(tmp_path / "model", {"precision": "bf16"})]
    network.labels = LabelSet(("a", "b"))
    with pytest.raises(InputError, match=r"was trained on \['a', 'b'\]; train it again"):
        baseline._score(training)


@pytest.mark.parametrize(
    ("settings", "processes", "has_norm", "is_refused"),
    [
        ({}, 1, True, False),
        ({"chunk_size": 2}, 1, True, True),
        ({}, 2, True, True),
        ({"chunk_size": 2}, 2, False, False),
        ({"chunk_size": 2, "train": "head"}, 1, True, False),
        ({"chunk_size": 2, "batch_norm": "frozen"}, 1, True, False),
    ],
)
def test_batch_normalisation_sees_whole_batches(
    settings: dict[str, Any], processes: int, has_norm: bool, is_refused: bool
) -> None:
    backbone: Any = SimpleNamespace(running_statistics={"mean": 0} if has_norm else {})
    with pytest.raises(ConfigError, match=f"in {processes} process") if is_refused else nullcontext():
        baseline._require_whole_batches(config_of("m", **settings), backbone, processes)


@pytest.mark.parametrize("size", [5, 11])
def test_pictures_are_scored_in_batches_of_any_size(
    size: int, models: dict[str, str], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make(config_of(models["resnet"]), manifest, tmp_path).backbone
    greys = pixel_cache(manifest, backbone.preprocess, tmp_path / "px").arrays["pixels"]
    rows = np.random.default_rng(0).permutation(24)[:11]
    backbone.network.eval()
    expected = backbone.predict(backbone.expand(np.array(greys[rows])).numpy())
    backbone.network.train()
    monkeypatch.setattr(network_scores, "_BATCH", size)
    seen: list[tuple[int, int]] = []
    found = scores_of(backbone, greys, rows, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert seen == ([(5, 11), (10, 11), (11, 11)] if size == 5 else [(11, 11)])
    assert not any(module.training for module in backbone.network.modules())


def test_a_networks_own_dropout_hangs_on_the_step(
    models: dict[str, str], split_manifest: Manifest, tmp_path: Path
) -> None:
    """Not on the random stream: a continued run draws the same."""
    model = tmp_path / "dropout"
    save_classifier("vit", model)
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | {"hidden_dropout_prob": 0.3}))
    trainee = make(config_of(str(model), batch_size=12), split_manifest, tmp_path)
    one, _ = gradients(trainee, batch_of(split_manifest))
    torch.rand(5)
    again, _ = gradients(trainee, batch_of(split_manifest))
    other, _ = gradients(trainee, batch_of(split_manifest, step=4))

    def seeded(seed: int, config: Config) -> SupervisedStep:
        """Of the same head, which is drawn from the seed too."""
        step = make(config, split_manifest, tmp_path)
        return dataclasses.replace(step, training=dataclasses.replace(step.training, config=dataclasses.replace(config, seed=seed)))  # fmt: skip

    seed, without = (
        gradients(trainee, batch_of(split_manifest))[0]
        for trainee in (
            seeded(1, config_of(str(model), batch_size=12, augmentation="none")),
            seeded(0, config_of(models["vit"], batch_size=12)),
        )
    )
    plain, _ = gradients(
        make(config_of(str(model), batch_size=12, augmentation="none"), split_manifest, tmp_path),
        batch_of(split_manifest),
    )
    assert one == again
    assert one not in (other, without)
    assert seed != plain, "the seed decides it, too"


def test_two_processes_give_the_run_of_one(models: dict[str, str], split_manifest: Manifest, tmp_path: Path) -> None:
    """Seven images a step: one process takes four, the other three."""
    write_manifest(tmp_path / "m.parquet", split_manifest)
    values = {"model": models["vit"], "batch_size": 7, "chunk_size": 2, "steps": 3, "validate_every": 1,
              "learning_rate": 3e-3, "precision": "fp32"}  # fmt: skip
    arguments = ["baseline", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "two")]
    arguments += [part for k, v in values.items() for part in ("--set", f"{k}={v}")]
    ended = together(2, command, arguments)
    assert [one.returncode for one in ended] == [0, 0], ended
    run_method("baseline", Config(**values), split_manifest, tmp_path / "one")
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(rows[0]) == len(rows[1]) == 7
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        assert one.pop("fold", None) is None and two.pop("fold", None) is None
        assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize(("select", "step", "steps"), [("log_loss", 1, 3), ("macro_f1", 2, 4), ("last", 4, 4)])
def test_the_best_weights_are_kept_and_waiting_has_an_end(
    select: str, step: int, steps: int, models: dict[str, str], split_manifest: Manifest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The loss is best at step 1 and at step 4, the F1 at step 2; two more validations are waited for."""
    values, seen = iter([(0.9, 0.1), (0.2, 0.5), (0.3, 0.8), (0.4, 0.8), (0.1, 0.2)]), []

    def validate(self: SupervisedStep, rows: Any) -> dict[str, float]:
        seen.append({name: tensor.detach().clone() for name, tensor in self.state.items()})
        loss, f1 = next(values)
        return {"val_accuracy": 0.0, "val_macro_f1": f1, "val_log_loss": loss}

    monkeypatch.setattr(SupervisedStep, "validate", validate)
    weighed: list[list[int]] = []
    real = baseline.class_weights
    monkeypatch.setattr(baseline, "class_weights", lambda y, n, kind: weighed.append(y.tolist()) or real(y, n, kind))
    patience = 0 if select == "last" else 2
    config = config_of(models["vit"], steps=4, validate_every=1, patience=patience, learning_rate=0.01, select=select)
    run_method("baseline", config, split_manifest, tmp_path / "run")
    facts = read_trained_note(tmp_path / "run" / "model")[2]
    assert (facts["step"], facts["steps"]) == (step, steps)
    kept = load_trained(tmp_path / "run" / "model", precision="fp32", device="cpu").network.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[step].items())
    train = np.array(split_manifest.column("split")) == "train"
    assert weighed == [split_manifest.targets(LABELS)[train].tolist()], "other images' labels do not weigh"


def test_what_is_validated_are_the_validation_images(
    models: dict[str, str], split_manifest: Manifest, tmp_path: Path
) -> None:
    run_method("baseline", config_of(models["vit"], select="last"), split_manifest, tmp_path / "run")
    backbone = load_trained(tmp_path / "run" / "model", precision="fp32", device="cpu")
    rows = np.flatnonzero(np.array(split_manifest.column("split")) == "val")
    greys = pixel_cache(split_manifest, backbone.preprocess, tmp_path / "px").arrays["pixels"][rows]
    scores = backbone.predict(backbone.expand(np.array(greys)).numpy())
    target = split_manifest.targets(LABELS)[rows]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_log_loss"] == pytest.approx(-np.log(scores[np.arange(len(rows)), target]).mean(), rel=1e-5)
    assert last["val_accuracy"] == (scores.argmax(axis=1) == target).mean()
    assert last["val_macro_f1"] == macro_f1(target, scores.argmax(axis=1), 3)
    (kept,) = read_validation(tmp_path / "run")
    assert kept.image_id == tuple(split_manifest.column("image_id")[row] for row in rows)
    np.testing.assert_allclose(kept.scores, scores, atol=1e-6)


def test_bad_input_is_named_and_leaves_no_result(
    models: dict[str, str], split_manifest: Manifest, tmp_path: Path
) -> None:
    for kind, message, config in (
        (ConfigError, "which chunk_size = 2 in 1 process", config_of(models["resnet"], chunk_size=2)),
        (ConfigError, "larger than the training set", config_of(models["vit"], batch_size=99, chunk_size=4)),
        (ModelError, "no such folder", config_of("no-such-model")),
    ):
        with pytest.raises(kind, match=message):
            run_method("baseline", config, split_manifest, tmp_path / "run")
        assert not (tmp_path / "run" / "predictions.parquet").exists()


def test_the_head_of_a_network_of_other_classes_is_drawn_anew(
    models: dict[str, str], split_manifest: Manifest, tmp_path: Path
) -> None:
    other = split_manifest.with_columns(label=[f"{label} (old)" for label in split_manifest.column("label")])
    config = config_of(models["vit"], steps=1)
    run_method("baseline", config, other, tmp_path / "other")
    heads = []
    for start in (models["vit"], str(tmp_path / "other" / "model")):
        found = load_backbone(start, LABELS, precision="fp32", device="cpu", seed=0)
        assert found.labels == LABELS
        heads.append({name: tensor.detach() for name, tensor in found.head_parameters.items()})
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_gradient_checkpointing_changes_no_gradient(
    models: dict[str, str], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: list[str] = []
    real = baseline.recompute_layers
    monkeypatch.setattr(baseline, "recompute_layers", lambda net, name: recomputed.append(name) or real(net, name))
    for kind in ("vit", "clip"):
        batch = batch_of(manifest, size=6)
        one = gradients(make(config_of(models[kind], batch_size=12), manifest, tmp_path), batch)
        two = gradients(
            make(config_of(models[kind], batch_size=12, gradient_checkpointing=True), manifest, tmp_path), batch
        )
        assert one[0] == pytest.approx(two[0], rel=1e-6)
        for name, gradient in one[1].items():
            assert torch.allclose(gradient, two[1][name], atol=1e-6), name
        assert len(recomputed) == 1
        recomputed.clear()
