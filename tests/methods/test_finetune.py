"""Fine-tuning as a run: folders, resume, leaks, selection, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import save_checkpoint
from tests.conftest import files

from thoraclip.data.splits import split_fractions
from thoraclip.errors import ConfigError, LeakError, ManifestError, MismatchError, ThoraclipError, TrainingError
from thoraclip.methods import pairs
from thoraclip.methods.finetune import Config
from thoraclip.methods.running import run_method
from thoraclip.models.adapter import read_note
from thoraclip.runs import Progress
from thoraclip.tables.captions import Captions, write_captions
from thoraclip.tables.manifest import Manifest

TRAINED = ("adapter/adapter_model.safetensors", "adapter/thoraclip.json", "last/adapter_model.safetensors", "metrics.jsonl", "training.svg")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """DINOv2 + BERT of a few thousand weights, whose projections are random."""
    return str(save_checkpoint("vision-text-dual-encoder", tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture
def split_manifest(manifest: Manifest) -> Manifest:
    """The 24 images with a train/val/test split in place of folds."""
    return split_fractions(manifest, fractions=(0.5, 0.25, 0.25), seed=0)


def config_of(model: str, **settings: Any) -> Config:
    few = {
        "batch_size": 4,
        "chunk_size": 3,
        "steps": 8,
        "validate_every": 2,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "val_fraction": 0.25,
    }
    return Config(model=model, **(few | settings))


def weights(run: Path, name: str = "adapter") -> dict[str, torch.Tensor]:
    return load_file(run / name / "adapter_model.safetensors")


def interrupt_at(step: int, how: Callable[[], None]) -> Progress:
    """A progress callback that interrupts at the given step of the training (8 steps of 4 images)."""

    def progress(done: int, total: int) -> None:
        if (done, total) == (4 * step, 32):
            how()

    return progress


def die() -> None:
    raise RuntimeError("killed")


def test_every_fold_gets_its_own_adapter_and_every_image_one_score(
    model: str, manifest: Manifest, tmp_path: Path
) -> None:
    predictions, details = run_method("finetune", config_of(model), manifest, tmp_path / "run")
    assert predictions.image_id == tuple(manifest.column("image_id"))
    assert set(predictions.split) == {"test"}
    folds = sorted(set(manifest.column("fold")))
    assert [c["fold"] for c in details["chosen"]] == folds
    for fold in folds:
        assert all((tmp_path / "run" / f"fold-{fold}" / name).is_file() for name in TRAINED)
        assert not (tmp_path / "run" / f"fold-{fold}" / "training.safetensors").exists()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["fold"] for row in rows} == set(folds)
    steps = [row for row in rows if row["fold"] == 0 and "loss" in row]
    checks = [row for row in rows if row["fold"] == 0 and "val_macro_f1" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["step"] for row in checks] == [0, 2, 4, 6, 8], "before the first step, and once an epoch"
    assert (tmp_path / "run" / "fold-0" / "training.svg").read_text().startswith("<svg")


def test_its_scores_are_those_of_zeroshot_with_its_adapters(model: str, manifest: Manifest, tmp_path: Path) -> None:
    predictions, _ = run_method("finetune", config_of(model), manifest, tmp_path / "run")
    from thoraclip.methods.zeroshot import Config as ZeroShot

    again, details = run_method(
        "zeroshot", ZeroShot(model=model, adapter=str(tmp_path / "run"), precision="fp32"), manifest, tmp_path / "z"
    )
    np.testing.assert_array_equal(again.scores, predictions.scores)
    assert len(details["per_prompt"]) == 12


def test_a_split_is_trained_once_and_only_its_test_images_are_scored(
    model: str, split_manifest: Manifest, tmp_path: Path
) -> None:
    predictions, _ = run_method("finetune", config_of(model), split_manifest, tmp_path / "run")
    assert all((tmp_path / "run" / name).is_file() for name in TRAINED)
    assert set(predictions.split) == {"test"}
    note = read_note(tmp_path / "run" / "adapter")
    assert note is not None
    content = split_manifest.by_id("sha256")
    split = split_manifest.by_id("split")
    assert set(note.facts["trained_on"]) == {content[i] for i, s in split.items() if s == "train"}
    assert set(note.facts["chosen_on"]) == {content[i] for i, s in split.items() if s == "val"}


def test_only_some_folds(model: str, manifest: Manifest, tmp_path: Path) -> None:
    predictions, _ = run_method("finetune", config_of(model, only_folds=(1,)), manifest, tmp_path / "run")
    assert set(predictions.fold) == {1}
    assert not (tmp_path / "run" / "fold-0").exists()
    with pytest.raises(ManifestError, match=r"no fold 7, which only_folds names; its folds are \[0, 1, 2\]"):
        run_method("finetune", config_of(model, only_folds=(7,)), manifest, tmp_path / "other")


def test_a_fold_that_is_trained_is_not_trained_again_when_others_join_it(
    model: str, manifest: Manifest, tmp_path: Path
) -> None:
    run_method("finetune", config_of(model, steps=2, only_folds=(1,)), manifest, tmp_path / "run")
    steps: list[int] = []

    def count(done: int, total: int) -> None:
        steps.extend([done] * (total == 8))  # 2 steps of 4 images

    run_method("finetune", config_of(model, steps=2), manifest, tmp_path / "run", progress=count)
    assert len(steps) == 2 * 2, "the two that were missing"
    run_method("finetune", config_of(model, steps=2), manifest, tmp_path / "fresh")
    assert files(tmp_path / "run") == files(tmp_path / "fresh")


def test_the_chunk_and_unseen_settings_do_not_change_the_result(
    model: str, split_manifest: Manifest, tmp_path: Path
) -> None:
    run_method("finetune", config_of(model), split_manifest, tmp_path / "one")
    run_method(
        "finetune", config_of(model, chunk_size=1, gradient_checkpointing=True), split_manifest, tmp_path / "two"
    )
    one, two = weights(tmp_path / "one", "last"), weights(tmp_path / "two", "last")
    assert one.keys() == two.keys()
    for name in one:
        assert float((one[name] - two[name]).norm() / one[name].norm()) < 1e-2, (
            "AdamW enlarges the rounding of small gradients"
        )


@pytest.mark.parametrize(
    ("loss", "extra"),
    [
        ("infonce", {}),
        ("unicl", {"class_weight": "balanced"}),
        ("siglip", {"sampling": "balanced"}),
        ("prompt_ce", {"towers": "vision"}),
    ],
)
def test_every_loss_learns_the_training_images(
    loss: str, extra: dict[str, Any], split_manifest: Manifest, tmp_path: Path
) -> None:
    config = config_of(
        "tiny-clip", loss=loss, steps=10, batch_size=12, chunk_size=6, augmentation=False, lora_dropout=0.0, select="last",
        learning_rate=3e-3, **extra,
    )  # fmt: skip
    run_method("finetune", config, split_manifest, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


@pytest.mark.parametrize("checkpointed", [True, False], ids=["after a checkpoint", "before any"])
def test_a_killed_training_ends_with_the_same_bytes(
    checkpointed: bool, model: str, split_manifest: Manifest, tmp_path: Path
) -> None:
    config = config_of(model, checkpoint_minutes=1e-9 if checkpointed else 60.0)
    run_method("finetune", config, split_manifest, tmp_path / "whole")
    for step in (3, 5, 8):
        with pytest.raises(RuntimeError, match="killed"):
            run_method("finetune", config, split_manifest, tmp_path / "again", progress=interrupt_at(step, die))
        assert (tmp_path / "again" / "training.safetensors").exists() == (checkpointed and step > 1)
    run_method("finetune", config, split_manifest, tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(
    number: signal.Signals, model: str, split_manifest: Manifest, tmp_path: Path
) -> None:
    config = config_of(model)
    run_method("finetune", config, split_manifest, tmp_path / "whole")
    ask = interrupt_at(3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        run_method("finetune", config, split_manifest, tmp_path / "again", progress=ask)
    assert (tmp_path / "again" / "training.safetensors").exists()
    seen: list[tuple[int, int]] = []
    run_method("finetune", config, split_manifest, tmp_path / "again", progress=lambda d, t: seen.append((d, t)))
    assert (16, 32) in seen and (12, 32) not in seen, "it went on at step 4"
    assert files(tmp_path / "again") == files(tmp_path / "whole")


def test_a_training_that_replaces_another_is_scored_by_its_own_adapter(
    model: str, split_manifest: Manifest, tmp_path: Path
) -> None:
    """Both in one process, so that the encoder of the first is still there."""
    run_method("finetune", config_of(model, learning_rate=1e-4), split_manifest, tmp_path / "run")
    run_method("finetune", config_of(model, learning_rate=1e-1), split_manifest, tmp_path / "run")
    run_method("finetune", config_of(model, learning_rate=1e-1), split_manifest, tmp_path / "fresh")
    first, second = ((tmp_path / place / "predictions.parquet").read_bytes() for place in ("run", "fresh"))
    assert first == second


def test_what_another_split_left_does_not_stay(
    model: str, manifest: Manifest, split_manifest: Manifest, tmp_path: Path
) -> None:
    for images in (split_manifest, manifest, split_manifest):
        run_method("finetune", config_of(model, steps=2), images, tmp_path / "run")
        found = sorted(
            path.parent.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("adapter_config.json")
        )
        is_split = images is split_manifest
        assert {path.parts[0] for path in found} == (
            {"adapter", "last"} if is_split else {"fold-0", "fold-1", "fold-2"}
        )


def test_other_settings_do_not_go_on_from_the_checkpoint(model: str, split_manifest: Manifest, tmp_path: Path) -> None:
    config = config_of(model, checkpoint_minutes=1e-9)
    with pytest.raises(RuntimeError, match="killed"):
        run_method("finetune", config, split_manifest, tmp_path / "run", progress=interrupt_at(5, die))
    other = dataclasses.replace(config, seed=1)
    run_method("finetune", other, split_manifest, tmp_path / "run")
    run_method("finetune", other, split_manifest, tmp_path / "fresh")
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "fresh").keys()
    assert files(tmp_path / "run") == files(tmp_path / "fresh")


def test_the_best_adapter_is_kept_and_waiting_has_an_end(model: str, split_manifest: Manifest, tmp_path: Path) -> None:
    config = config_of(model, validate_every=1, patience=2, steps=100, learning_rate=1e-6)
    _, details = run_method("finetune", config, split_manifest, tmp_path / "run")
    (chosen,) = details["chosen"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    checks = {row["step"]: row["val_macro_f1"] for row in rows if "val_macro_f1" in row}
    assert chosen["step"] == min(step for step, value in checks.items() if value == max(checks.values()))
    assert chosen["steps"] == chosen["step"] + 2 < 100
    assert chosen["validation"]["val_macro_f1"] == max(checks.values())


def test_selection_by_a_probe_and_by_nothing(model: str, split_manifest: Manifest, tmp_path: Path) -> None:
    _, details = run_method("finetune", config_of(model, select="probe", steps=2), split_manifest, tmp_path / "probe")
    assert 0 <= details["chosen"][0]["validation"]["val_probe_macro_f1"] <= 1
    _, details = run_method("finetune", config_of(model, select="last"), split_manifest, tmp_path / "last")
    assert details["chosen"][0]["step"] == 8
    assert files(tmp_path / "last" / "last")["adapter_model.safetensors"] == files(tmp_path / "last" / "adapter")["adapter_model.safetensors"]  # fmt: skip


def test_an_adapter_never_scores_what_it_was_trained_on(model: str, manifest: Manifest, tmp_path: Path) -> None:
    from thoraclip.methods.probe import Config as Probe
    from thoraclip.methods.zeroshot import Config as ZeroShot

    run_method("finetune", config_of(model), manifest, tmp_path / "run")
    one = str(tmp_path / "run" / "fold-0" / "adapter")
    for kind, config in (("zeroshot", ZeroShot(model=model, adapter=one)), ("probe", Probe(model=model, adapter=one))):
        with pytest.raises(LeakError, match=r"was trained or chosen on \d+ of the \d+ images to be judged"):
            run_method(kind, config, manifest, tmp_path / kind)
    predictions, details = run_method(
        "probe", Probe(model=model, adapter=one, only_folds=(0,)), manifest, tmp_path / "p"
    )
    assert set(predictions.fold) == {0}
    predictions, details = run_method(
        "probe", Probe(model=model, adapter=str(tmp_path / "run")), manifest, tmp_path / "all"
    )
    assert predictions.image_id == tuple(manifest.column("image_id"))
    for chosen in details["chosen"]:
        note = read_note(tmp_path / "run" / f"fold-{chosen['fold']}" / "adapter")
        assert note is not None
        assert chosen["val"] == len(note.facts["chosen_on"]), "its validation images, though val_fraction differs"


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    model: str, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thoraclip.methods import losses

    config = config_of(model)
    run_method("finetune", config, split_manifest, tmp_path / "whole")
    calls, real = [], losses.unicl

    def spoilt(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments, **named) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(losses, "unicl", spoilt)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan, in the batch of 4 images that begins with '.*\.png'; the weights of step 3 are kept in .*lower learning_rate = 0.01"):  # fmt: skip
        run_method("finetune", config, split_manifest, tmp_path / "run")
    monkeypatch.setattr(losses, "unicl", real)
    run_method("finetune", config, split_manifest, tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole"), "nothing of the spoilt step was kept"


def write_some_captions(path: Path, manifest: Manifest, text: str = "image {}", *, leave_out: int = 0, more: tuple[str, ...] = ()) -> str:  # fmt: skip
    ids = tuple(manifest.column("image_id")[leave_out:]) + more
    contents = tuple(manifest.column("sha256")[leave_out:]) + (None,) * len(more)
    texts = tuple(text.format(n % 4) for n in range(len(ids)))
    write_captions(path, Captions(ids, contents, texts, (False,) * len(ids), {"captioner": "test"}))
    return str(path)


def test_captions_are_joined_by_image_and_the_label_appended_once(
    model: str, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = write_some_captions(tmp_path / "c.parquet", split_manifest)
    seen: list[tuple[str, ...]] = []
    original = pairs.CaptionTexts.of
    monkeypatch.setattr(
        pairs.CaptionTexts, "of", lambda rows, texts: seen.append(tuple(texts)) or original(rows, texts)
    )
    config = config_of(model, captions=captions, append_label=True, steps=2)
    run_method("finetune", config, split_manifest, tmp_path / "run")
    ids, labels, split = (split_manifest.column(n) for n in ("image_id", "label", "split"))
    expected = tuple(f"image {n % 4}, {labels[n]}" for n in range(len(ids)) if split[n] == "train")
    assert seen == [expected]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 99, "chunk_size": 4}, r"batch_size = 99: larger than the training set, 12 images"),
        ({"batch_size": 6, "chunk_size": 7}, "chunk_size = 7 exceeds batch_size = 6"),
        ({"target_modules": ("nothing",)}, r"target_modules = \['nothing'\]: none of them is in the vision tower .* its linear layers are: attention.k_proj"),
        ({"target_modules": ("mlp.fc1",)}, "none of them is in the text tower"),
        ({"loss": "clip"}, "unknown loss 'clip'"),
        ({"loss": "infonse"}, "did you mean 'infonce'"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0: must be positive"),
        ({"append_label": True}, "append_label = true needs captions"),
        ({"captions": "c.csv", "loss": "prompt_ce"}, "leave captions out"),
        ({"trackers": ("mlfow",)}, "unknown tracker 'mlfow'; did you mean 'mlflow'"),
        ({"processes": 2}, "processes = 2, but 1 was started"),
        ({"mirror": 2.0}, "mirror = 2.0"),
        ({"rank": 0}, "rank = 0"),
        ({"towers": "all"}, "unknown towers 'all'"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(
    settings: dict[str, Any], message: str, model: str, split_manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(ThoraclipError, match=message):
        run_method("finetune", config_of(model, **settings), split_manifest, tmp_path / "run")


def test_bad_captions_are_named(model: str, split_manifest: Manifest, tmp_path: Path) -> None:
    cases = {
        "unknown": (write_some_captions(tmp_path / "1.parquet", split_manifest, more=("a.png",)), "1 are for images that the manifest does not have|1 of 25 are for images"),
        "missing": (write_some_captions(tmp_path / "2.parquet", split_manifest, leave_out=20), "have none, first"),
    }  # fmt: skip
    for captions, message in cases.values():
        with pytest.raises(MismatchError, match=message):
            run_method("finetune", config_of(model, captions=captions), split_manifest, tmp_path / "run")
    (tmp_path / "3.csv").write_text(
        "image_id,caption\n" + "".join(f"{i},\n" for i in split_manifest.column("image_id"))
    )
    with pytest.raises(ManifestError, match="empty text"):
        run_method("finetune", config_of(model, captions=str(tmp_path / "3.csv")), split_manifest, tmp_path / "run")


def test_projections_of_a_model_without_any(split_manifest: Manifest, tmp_path: Path) -> None:
    siglip = str(save_checkpoint("siglip", tmp_path / "siglip"))
    with pytest.raises(ConfigError, match="has none; set projections = freeze"):
        run_method("finetune", config_of(siglip, projections="train"), split_manifest, tmp_path / "run")
