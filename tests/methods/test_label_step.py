"""Fine-tuning by the classes alone: the step against one plain backward pass, and the runs of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import save_checkpoint, save_tower
from tests.conftest import files, write_class_folder
from tests.methods.threads import in_threads
from torch import Tensor, nn

from thoraclip.data.batches import pixel_cache
from thoraclip.data.index import index
from thoraclip.methods import finetune
from thoraclip.methods.finetune import Config
from thoraclip.methods.label_step import LabelStep, TrainedHead
from thoraclip.methods.losses import supcon
from thoraclip.methods.predictors import read_run
from thoraclip.methods.probe import Config as Probe
from thoraclip.methods.running import run_method
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch
from thoraclip.models.dual_encoder import load_vision_encoder
from thoraclip.models.heads import read_head
from thoraclip.models.lora import add_lora
from thoraclip.tables.manifest import Manifest

pytestmark = pytest.mark.usefixtures("plain")
ROWS = np.arange(24)
LOSSES = ("supcon", "cross_entropy")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label-step")
    write_class_folder(folder / "images")
    save_tower("dinov2", folder / "dinov2")
    save_checkpoint("clip", folder / "clip")
    return folder


def make_step(work: Path, loss: str, *, model: str = "dinov2", **settings: Any) -> LabelStep:
    manifest = index(work / "images", layout="folders").manifest
    labels = manifest.label_set()
    values = {"batch_size": 24, "chunk_size": 24, "lora_dropout": 0.2, "temperature": 0.2}
    config = Config(model=str(work / model), loss=loss, precision="fp32", **values | settings)
    encoder = load_vision_encoder(config.model, precision="fp32")
    tuned = add_lora(encoder, config.lora, seed=3, train_scale=False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.encoder_parameters.items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    head = TrainedHead.of(tuned, len(labels)) if loss == "cross_entropy" else None
    step = LabelStep(
        config=config, loss=loss, tuned=tuned, group=ProcessGroup(), labels=labels, head=head, temperature=0.2,
        greys=pixel_cache(manifest, encoder.preprocess, work / "pixels").arrays["pixels"],
        targets=manifest.targets(labels), weight=np.array([0.5, 1.0, 1.5])[manifest.targets(labels)],
    )  # fmt: skip
    step.begin(ROWS[::2], ROWS[1::2], "none")
    return step


def gradients(step: LabelStep, rows: np.ndarray = ROWS) -> dict[str, Tensor]:
    for parameter in step.parameters.values():
        parameter.grad = None
    found = {"loss": torch.tensor(step.backward(Batch(7, rows, rows)))}
    return found | {name: p.grad.clone() for name, p in step.parameters.items() if p.grad is not None}


def plainly(step: LabelStep) -> dict[str, Tensor]:
    """One forward and backward pass, written out."""
    target, weight = torch.from_numpy(step.targets), torch.tensor([0.5, 1.0, 1.5])
    pooled, _ = step._features_of(Batch(7, ROWS, ROWS))(torch.arange(24))
    if step.head:
        z = (pooled - step.head.mean) / step.head.scale
        each = nn.functional.cross_entropy(z @ step.head.weight.T + step.head.bias, target, reduction="none")
        loss = (weight[target] * each).mean()
    else:
        loss = supcon(nn.functional.normalize(pooled), torch.tensor(5.0), target, weight=weight[target])
    step.tuned.clear_masks()
    names = list(step.parameters)
    found = torch.autograd.grad(loss, [step.parameters[name] for name in names])
    return {"loss": loss.detach(), **dict(zip(names, found, strict=True))}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-12)) for n in one)


@pytest.mark.parametrize("model", ["dinov2", "clip"])
@pytest.mark.parametrize("loss", LOSSES)
def test_neither_the_chunk_nor_the_processes_change_the_gradient(loss: str, model: str, work: Path) -> None:
    step = make_step(work, loss, model=model)
    expected = plainly(step)
    assert len(expected) > 4 and all(float(g.abs().max()) > 0 for g in expected.values())
    assert {"head.weight", "head.bias"} <= expected.keys() or loss == "supcon"
    for chunk in (24, 5, 1):
        chunked = dataclasses.replace(step, config=dataclasses.replace(step.config, chunk_size=chunk))
        assert difference(gradients(chunked), expected) < 1e-5
    if model == "dinov2":
        made = [make_step(work, loss, chunk_size=5) for _ in range(3)]
        ranks = in_threads(3, lambda g: gradients(dataclasses.replace(made[g._accelerator.process_index], group=g)))
        assert max(difference(found, expected) for found in ranks) < 1e-5


def test_the_head_begins_as_a_probe_of_the_untouched_encoder_and_is_read_as_it_was_trained(work: Path) -> None:
    step = make_step(work, "cross_entropy")
    assert step.head is not None
    fitted, values = step.fit_head(ROWS[::2], ROWS[1::2], step.labels)
    kept, again = step.scoring_head(ROWS[::2], ROWS[1::2], "none")
    for name in ("mean", "scale", "weight", "bias"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(fitted, name))
    assert again == values and set(values) == {"val_accuracy", "val_macro_f1", "val_log_loss"}
    pooled = torch.from_numpy(step._encode(ROWS)[0])
    scores = step.head.logits(pooled).softmax(dim=1).detach().double().numpy()
    np.testing.assert_allclose(kept.predict(pooled.numpy()), scores, atol=1e-5)
    assert set(step.state) - set(step.parameters) == {"head.mean", "head.scale"}


FEW: dict[str, Any] = {
    "batch_size": 4, "chunk_size": 3, "steps": 3, "validate_every": 2, "learning_rate": 1e-2, "precision": "fp32",
    "val_fraction": 0.25,
}  # fmt: skip


@pytest.mark.parametrize(("loss", "model"), [("supcon", "dinov2"), ("cross_entropy", "dinov2"), ("supcon", "clip")])
def test_a_run_is_scored_by_its_head_and_serves_as_an_adapter(
    loss: str, model: str, work: Path, manifest: Manifest, tmp_path: Path
) -> None:
    config = Config(model=str(work / model), loss=loss, only_folds=(0, 1), **FEW)
    predictions, details = run_method("finetune", config, manifest, tmp_path / "run")
    assert "prompt_set" not in details and "prompts" not in config.inputs()
    run, labels = read_run(tmp_path / "run"), manifest.label_set()
    for fold in (0, 1):
        folder = tmp_path / "run" / f"fold-{fold}"
        rows = np.flatnonzero([held == fold for held in manifest.column("fold")])
        classifier = run.classifier(fold, labels)
        greys = pixel_cache(manifest, classifier.preprocess, tmp_path / "pixels").arrays["pixels"]
        features, scores = classifier.look(np.array(greys[rows]))
        own = [predictions.image_id.index(manifest.column("image_id")[row]) for row in rows]
        np.testing.assert_allclose(scores, predictions.scores[own], atol=1e-5)
        np.testing.assert_array_equal(scores, read_head(folder / "head.safetensors").predict(features))
        note = json.loads((folder / "adapter" / "thoraclip.json").read_text())["facts"]
        chosen = next(one for one in details["chosen"] if one["fold"] == fold)
        validations = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        best = max(row["val_macro_f1"] for row in validations if "val_macro_f1" in row)
        assert note["validation"]["val_macro_f1"] == best == chosen["validation"]["val_macro_f1"]
        if loss == "supcon":  # as the validation said of the kept step
            val = [row for row, sha in enumerate(manifest.column("sha256")) if sha in note["chosen_on"]]
            target = manifest.targets(labels)[val]
            hit = classifier.look(np.array(greys[val]))[1].argmax(axis=1) == target
            assert float(hit.mean()) == chosen["validation"]["val_accuracy"]
    probe = Probe(model=str(work / model), adapter=str(tmp_path / "run"), only_folds=(0,), l2_steps=1)
    assert run_method("probe", probe, manifest, tmp_path / "probe")[0].labels == labels


@pytest.mark.parametrize(("loss", "class_weight", "fits"), [
    ("supcon", "none", 3 + 1), ("supcon", "balanced", 2 * 3 + 1), ("cross_entropy", "none", 1 + 3),
])  # fmt: skip
def test_a_head_that_chooses_and_scores_is_fitted_once(
    loss: str, class_weight: str, fits: int, work: Path, split_manifest: Manifest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Three validations and the end; a head that is trained along, or weighted, is another one than the probe."""
    fit, weightings = LabelStep.fit_head, list[str]()

    def counted(self: LabelStep, *given: Any, weighting: str = "none") -> Any:
        weightings.append(weighting)
        return fit(self, *given, weighting=weighting)

    monkeypatch.setattr(LabelStep, "fit_head", counted)
    config = Config(model=str(work / "dinov2"), loss=loss, select="probe", class_weight=class_weight, **FEW)
    run_method("finetune", config, split_manifest, tmp_path / "run")
    assert len(weightings) == fits and weightings.count("none") >= 3
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "val_macro_f1" in row]
    assert len(rows) == 3 and all("val_probe_macro_f1" in row for row in rows)
    if fits == 4 and loss == "supcon":
        assert all(row["val_probe_macro_f1"] == row["val_macro_f1"] for row in rows)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_killed_run_ends_with_the_same_bytes(loss: str, work: Path, split_manifest: Manifest, tmp_path: Path) -> None:
    config = Config(
        model=str(work / "dinov2"), loss=loss, checkpoint_minutes=1e-9, lora_blocks=1, prefix_views=2, **FEW
    )
    run_method("finetune", config, split_manifest, tmp_path / "whole")

    for step in (1, 3):

        def kill(done: int, total: int, step: int = step) -> None:
            if (done, total) == (4 * step, 12):
                raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            run_method("finetune", config, split_manifest, tmp_path / "run", progress=kill)
    run_method("finetune", config, split_manifest, tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert not list((tmp_path / "run" / "pixels").glob("tokens-*")), "the tokens go with the end of the run"


def test_a_training_that_nothing_gained_says_so(
    work: Path, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import thoraclip

    config = Config(model=str(work / "dinov2"), loss="supcon", **FEW)
    said: list[str] = []
    for best, empty in ((0, True), (2, False)):
        values = iter([0.5 + (step == best) / 2 for step in (0, 2, 3)])

        def score(*_: Any, values: Any = values) -> dict[str, float]:
            return {"val_accuracy": 0.0, "val_macro_f1": next(values), "val_log_loss": 1.0}

        monkeypatch.setattr(finetune, "_scored", score)
        out = tmp_path / f"best-{best}"
        _, details = run_method("finetune", config, split_manifest, out, announce=said.append)
        assert details["chosen"][0].get("empty", False) is empty
        adapter = (out / "adapter" / "adapter_model.safetensors").read_bytes()
        assert adapter != (out / "last" / "adapter_model.safetensors").read_bytes()
        assert said.count("no step beat the untouched encoder on validation; the kept adapter is empty") == 1
        reading = thoraclip.report(out, out=tmp_path / "report", resamples=100)["reading"]
        assert any("in 1 of 1 trainings no step beat the untouched encoder" in line for line in reading) is empty
