"""Fine-tuning as a run: folders, resume, leaks, selection, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import save_checkpoint
from tests.conftest import files
from tests.methods.conftest import draw_plainly

from thoraclip.errors import ConfigError, LeakError, ManifestError, MismatchError, ThoraclipError, TrainingError
from thoraclip.methods import finetune, losses
from thoraclip.methods.contrastive import CaptionTexts, ContrastiveStep
from thoraclip.methods.encoders import EncoderConfig, ModelConfig
from thoraclip.methods.finetune import Config
from thoraclip.methods.probe import Config as Probe
from thoraclip.methods.running import run_method
from thoraclip.methods.training import folds as fold_training
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.zeroshot import Config as ZeroShot
from thoraclip.methods.zeroshot import prompts_digest
from thoraclip.models.files import read_note
from thoraclip.models.lora import LoraSettings, TunableEncoder
from thoraclip.runs import Progress, file_sha256
from thoraclip.tables.captions import Captions, write_captions
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

pytestmark = pytest.mark.usefixtures("plain")

TRAINED = ("adapter/adapter_model.safetensors", "adapter/thoraclip.json", "last/adapter_model.safetensors", "metrics.jsonl", "training.svg")  # fmt: skip
STEPS = 4


@pytest.fixture(scope="module")
def model(models: dict[str, str]) -> str:
    return models["dual"]


def config_of(model: str, **settings: Any) -> Config:
    few = {
        "batch_size": 4, "chunk_size": 3, "steps": STEPS, "validate_every": 2, "learning_rate": 1e-2, "precision": "fp32",
        "val_fraction": 0.25, "prompts": "reference", "loss": "unicl",
    }  # fmt: skip
    return Config(model=model, **(few | settings))


def weights(run: Path, name: str = "adapter") -> dict[str, torch.Tensor]:
    return load_file(run / name / "adapter_model.safetensors")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def content(run: Path) -> dict[str, bytes]:
    """All files but the settings, of which `checkpoint_minutes` does not count."""
    return {name: data for name, data in files(run).items() if name != "config.toml"}


def killed_at(step: int) -> Progress:
    """A progress callback that raises at the given step of the training, before its checkpoint."""

    def progress(done: int, total: int) -> None:
        if (done, total) == (4 * step, 4 * STEPS):
            raise RuntimeError("killed")

    return progress


@pytest.fixture(scope="module")
def folds(
    model: str, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Predictions, dict[str, Any]]:
    """A run of three folds; only read."""
    with pytest.MonkeyPatch.context() as patch:
        draw_plainly(patch)
        folder = tmp_path_factory.mktemp("folds") / "run"
        return folder, *run_method("finetune", config_of(model), manifest, folder)


@pytest.fixture(scope="module")
def whole(model: str, split_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a split that nothing interrupted; only read."""
    with pytest.MonkeyPatch.context() as patch:
        draw_plainly(patch)
        folder = tmp_path_factory.mktemp("whole") / "run"
        run_method("finetune", config_of(model), split_manifest, folder)
        return folder


Train = Callable[..., tuple[Predictions, dict[str, Any]]]


@pytest.fixture
def train(model: str, split_manifest: Manifest, tmp_path: Path) -> Train:
    """`train(settings)` in the folder `run`, on a split unless it is told otherwise."""

    def train(
        *, out: Path = tmp_path / "run", manifest: Manifest = split_manifest, progress: Progress | None = None, **settings: Any
    ) -> tuple[Predictions, dict[str, Any]]:  # fmt: skip
        return run_method("finetune", config_of(**{"model": model} | settings), manifest, out, progress=progress)

    return train


def test_every_fold_gets_its_own_adapter_and_every_image_one_score(
    folds: tuple[Path, Predictions, dict[str, Any]], model: str, manifest: Manifest, tmp_path: Path
) -> None:
    run, predictions, details = folds
    assert predictions.image_id == tuple(manifest.column("image_id"))
    assert set(predictions.split) == {"test"}
    assert [c["fold"] for c in details["chosen"]] == [0, 1, 2]
    for fold in range(3):
        assert all((run / f"fold-{fold}" / name).is_file() for name in TRAINED)
        assert not (run / f"fold-{fold}" / "training.safetensors").exists()
    rows = rows_of(run)
    assert {row["fold"] for row in rows} == {0, 1, 2}
    assert [row["step"] for row in rows if row["fold"] == 0 and "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["fold"] == 0 and "val_macro_f1" in row] == [0, 2, 4]
    config = ZeroShot(model=model, adapter=str(run), precision="fp32", prompts="reference")
    again, more = run_method("zeroshot", config, manifest, tmp_path / "z")
    np.testing.assert_array_equal(again.scores, predictions.scores)
    assert len(more["per_prompt"]) == 1


def test_a_split_is_trained_once_and_only_its_test_images_are_scored(
    train: Train, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the figure and the card are the real ones
    predictions, details = train(steps=1)
    assert all((tmp_path / "run" / name).is_file() for name in TRAINED)
    assert (tmp_path / "run" / "training.svg").read_text().startswith("<svg")
    assert set(predictions.split) == {"test"} and details["prompt_set"] == "reference"
    note = read_note(tmp_path / "run" / "adapter")
    assert note is not None
    content, split = split_manifest.by_id("sha256"), split_manifest.by_id("split")
    for fact, part in (("trained_on", "train"), ("chosen_on", "val")):
        assert set(note.facts[fact]) == {content[i] for i, s in split.items() if s == part}


@pytest.mark.parametrize("loss", ["unicl", "supcon"])
def test_only_images_that_are_scored_are_encoded_unless_a_later_run_reads_all(
    loss: str, train: Train, model: str, split_manifest: Manifest, tmp_path: Path
) -> None:
    run, split = tmp_path / "run", split_manifest.by_id("split")

    def encoded() -> set[str]:
        (run / "done.json").unlink()
        (folder,) = (run / "embeddings").iterdir()
        return set(read_embeddings(folder).image_id)

    alone, _ = train(steps=1, loss=loss)
    assert encoded() == {image for image, part in split.items() if part != "train"}
    config = config_of(model, steps=1, loss=loss)
    followed, _ = run_method("finetune", config, split_manifest, run, is_followed=True)
    assert encoded() == set(split)
    again, _ = train(steps=1, loss=loss)
    assert encoded() == set(split), "those of all are there, and read"
    np.testing.assert_array_equal(again.scores, followed.scores)
    np.testing.assert_allclose(again.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("loss", ["siglip", "unicl"])
def test_what_the_settings_say_is_what_is_trained_and_scored(
    loss: str, train: Train, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the sigmoid loss begins where the mean logit is zero."""
    seen: dict[str, list[Any]] = {}

    def watch(place: Any, name: str) -> None:
        real = getattr(place, name)

        def watched(*given: Any, **named: Any) -> Any:
            found = real(*given, **named)
            seen.setdefault(name, []).append((given, named, found))
            return found

        monkeypatch.setattr(place, name, watched)

    watch(TunableEncoder, "centre_bias")
    watch(finetune, "score_images")
    for name in ("load_dual_encoder", "add_lora", "_optimizer"):
        watch(finetune, name)
    settings = {
        "loss": loss,
        "geometry": "crop",
        "remedy": "stretch",
        "seed": 5,
        "train_logit_scale": False,
        "weight_decay": 0.3,
        "steps": 1,
    }
    train(**settings, gradient_checkpointing=True)
    ((given, named, encoder),) = seen["load_dual_encoder"]
    assert (given, named) == ((model,), {"geometry": "crop", "remedy": "stretch", "precision": "fp32", "device": "cpu"})
    ((given, named, tuned),) = seen["add_lora"]
    assert given == (encoder, config_of(model, **settings, gradient_checkpointing=True))
    assert named == {"seed": 5, "train_scale": False, "train_bias": loss == "siglip", "checkpointing": True}
    ((_, _, optimizer),) = seen["_optimizer"]
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0][: 1 + (loss == "siglip")]
    assert [p for group in groups for p in group["params"]] == list(tuned.parameters.values())
    (((scored, _, prompts, *_), _, _),) = seen["score_images"]
    expected = EncoderConfig(
        model=model, adapter=str(tmp_path / "run" / "adapter"), geometry="crop", precision="fp32", remedy="stretch"
    )
    assert (scored, prompts.name) == (expected, "reference")
    cosines = [row["val_mean_cosine"] for row in rows_of(tmp_path / "run") if "val_mean_cosine" in row]
    assert len(cosines) == 2
    assert [given[1] for given, *_ in seen.get("centre_bias", [])] == cosines[: int(loss == "siglip")]


def test_a_fold_that_is_trained_is_not_trained_again_when_others_join_it(
    folds: tuple[Path, Predictions, dict[str, Any]], train: Train, manifest: Manifest, tmp_path: Path
) -> None:
    predictions, _ = train(manifest=manifest, only_folds=(1,))
    assert set(predictions.fold) == {1}
    assert not (tmp_path / "run" / "fold-0").exists()
    steps: list[int] = []
    train(manifest=manifest, progress=lambda done, total: steps.extend([done] * (total == 4 * STEPS)))
    assert len(steps) == 2 * STEPS, "the two that were missing"
    assert files(tmp_path / "run") == files(folds[0])
    with pytest.raises(ManifestError, match=r"no fold 7, which only_folds names; its folds are \[0, 1, 2\]"):
        train(manifest=manifest, only_folds=(7,))


def test_the_chunk_and_unseen_settings_do_not_change_the_result(whole: Path, train: Train, tmp_path: Path) -> None:
    """As far as AdamW does not enlarge the rounding of small gradients."""
    train(chunk_size=1, gradient_checkpointing=True)
    one, two = weights(whole, "last"), weights(tmp_path / "run", "last")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).norm() / one[name].norm()) for name in one) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "extra"),
    [
        ("unicl", {"class_weight": "balanced"}),
        ("siglip", {"sampling": "balanced"}),
        ("prompt_ce", {"towers": "vision"}),
        ("supcon", {"lora_blocks": 1}),
        ("cross_entropy", {"class_weight": "balanced"}),
    ],
)
def test_every_loss_learns_the_training_images(loss: str, extra: dict[str, Any], train: Train, tmp_path: Path) -> None:
    train(
        model="tiny-clip", loss=loss, steps=8, batch_size=12, chunk_size=12, augmentation="none", lora_dropout=0.0, select="last",
        learning_rate=3e-3, validate_every=8, **extra,
    )  # fmt: skip
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


def test_a_killed_training_ends_with_the_same_bytes(whole: Path, train: Train, tmp_path: Path) -> None:
    """Before any checkpoint, after one, and at the last step."""
    for step in (1, 3, 4):
        with pytest.raises(RuntimeError, match="killed"):
            train(checkpoint_minutes=1e-9, progress=killed_at(step))
        assert (tmp_path / "run" / "training.safetensors").exists() == (step > 1)
    train(checkpoint_minutes=1e-9)
    assert content(tmp_path / "run") == content(whole)


def test_the_best_adapter_is_kept_and_waiting_has_an_end(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal validations the first; `last` has the weights after the last step."""
    values, seen = iter([0.1, 0.5, 0.9, 0.9, 0.3]), []

    def validate(self: ContrastiveStep, rows: Any, prompts: Any) -> dict[str, float]:
        seen.append({tensor.detach().numpy().tobytes() for tensor in self.tuned.parameters.values()})
        return {"val_accuracy": 0.0, "val_macro_f1": next(values), "val_mean_cosine": 0.0}

    monkeypatch.setattr(ContrastiveStep, "validate", validate)
    _, details = train(validate_every=1, patience=2, steps=20)
    (chosen,) = details["chosen"]
    assert (chosen["step"], chosen["steps"], chosen["validation"]["val_macro_f1"]) == (2, 4, 0.9)
    kept, last = ({t.numpy().tobytes() for t in weights(tmp_path / "run", n).values()} for n in ("adapter", "last"))
    assert kept <= seen[2] and last <= seen[4] and not kept <= seen[4]


@pytest.mark.parametrize("select", ["probe", "zeroshot", "last"])
def test_which_images_choose_and_by_what(
    select: str, train: Train, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is fitted on the training images, and the validation images choose; `last` chooses nothing."""
    split, asked = np.array(split_manifest.column("split")), []
    learnt, val = (np.flatnonzero(split == part).tolist() for part in ("train", "val"))
    zero, probe = iter([0.9, 0.1, 0.2]), iter([0.1, 0.8, 0.3])

    def by_prompts(self: ContrastiveStep, rows: np.ndarray, prompts: Any) -> dict[str, float]:
        asked.append(rows.tolist())
        return {"val_macro_f1": next(zero), "val_mean_cosine": 0.0}

    def by_probe(self: ContrastiveStep, fitted: np.ndarray, rows: np.ndarray, labels: Any) -> Any:
        asked.append((fitted.tolist(), rows.tolist()))
        return None, {"val_macro_f1": next(probe)}

    monkeypatch.setattr(ContrastiveStep, "validate", by_prompts)
    monkeypatch.setattr(ContrastiveStep, "fit_head", by_probe)
    _, details = train(select=select)
    assert details["chosen"][0]["step"] == {"probe": 2, "zeroshot": 0, "last": 4}[select]
    assert asked == ([val, (learnt, val)] if select == "probe" else [val]) * 3
    one, two = weights(tmp_path / "run"), weights(tmp_path / "run", "last")
    assert all(torch.equal(one[name], two[name]) for name in one) == (select == "last")


def test_an_adapter_never_scores_what_it_was_trained_on(
    folds: tuple[Path, Predictions, dict[str, Any]], model: str, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    run, few = folds[0], {"l2_min": 0.1, "l2_max": 0.1, "l2_steps": 1, "model": model}
    one = str(run / "fold-0" / "adapter")
    for kind, config in (("zeroshot", ZeroShot(model=model, adapter=one)), ("probe", Probe(adapter=one, **few))):
        with pytest.raises(LeakError, match=r"was trained or chosen on \d+ of the \d+ images to be judged"):
            run_method(kind, config, manifest, tmp_path / kind, cache=cache)
    single = Probe(adapter=one, only_folds=(0,), **few)
    predictions, _ = run_method("probe", single, manifest, tmp_path / "p", cache=cache)
    assert set(predictions.fold) == {0}
    predictions, details = run_method("probe", Probe(adapter=str(run), **few), manifest, tmp_path / "all", cache=cache)
    assert predictions.image_id == tuple(manifest.column("image_id"))
    for chosen in details["chosen"]:
        note = read_note(run / f"fold-{chosen['fold']}" / "adapter")
        assert note is not None
        assert chosen["val"] == len(note.facts["chosen_on"]), "its validation images, though val_fraction differs"


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    whole: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], losses.unicl

    def spoilt(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments, **named) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(losses, "unicl", spoilt)
    with pytest.raises(TrainingError, match=r"step 3: the loss is nan, in the batch of 4 images that begins with '.*\.png'; the weights of step 2 are kept in .*lower learning_rate = 0.01"):  # fmt: skip
        train()
    monkeypatch.setattr(losses, "unicl", real)
    train()
    assert files(tmp_path / "run") == files(whole), "nothing of the spoilt step was kept"


def write_some_captions(path: Path, manifest: Manifest, text: str = "image {}", *, leave_out: int = 0, more: tuple[str, ...] = ()) -> str:  # fmt: skip
    """Every third one says that it names the class."""
    ids = tuple(manifest.column("image_id")[leave_out:]) + more
    contents = tuple(manifest.column("sha256")[leave_out:]) + (None,) * len(more)
    texts = tuple(text.format(n % 4) for n in range(len(ids)))
    told = tuple(n % 3 == 0 for n in range(len(ids)))
    write_captions(path, Captions(ids, contents, texts, told, {"captioner": "test"}))
    return str(path)


def test_captions_are_joined_by_image_and_the_label_appended_once(
    train: Train, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = write_some_captions(tmp_path / "c.parquet", split_manifest)
    seen: list[tuple[str, ...]] = []
    original = CaptionTexts.of
    monkeypatch.setattr(CaptionTexts, "of", lambda rows, texts: seen.append(tuple(texts)) or original(rows, texts))
    weighed: list[list[int]] = []
    real = fold_training.class_weights
    monkeypatch.setattr(
        fold_training, "class_weights", lambda y, n, kind: weighed.append(y.tolist()) or real(y, n, kind)
    )
    learnt = [n for n, split in enumerate(split_manifest.column("split")) if split == "train"]
    labels, targets = split_manifest.column("label"), split_manifest.targets(split_manifest.label_set())
    for append in (True, False):
        train(captions=captions, append_label=append, steps=1, class_weight="balanced")
        assert seen.pop() == tuple(f"image {n % 4}" + f", {labels[n]}" * (append and n % 3 != 0) for n in learnt)
        assert weighed.pop() == targets[learnt].tolist(), "nor do others' labels weigh"


def test_the_defaults_are_the_documented_ones_and_inputs_are_the_files_that_are_named(tmp_path: Path) -> None:
    own = {
        "captions": "", "append_label": False, "prompts": "chest-xray-ensemble", "loss": "prompt_ce", "batch_size": 16,
        "chunk_size": 32, "learning_rate": 3e-4, "weight_decay": 0.01, "train_logit_scale": True, "logit_scale_max": 100.0,
        "class_weight": "none", "select": "auto", "prefix_views": 4, "temperature": 0.1,
    }  # fmt: skip
    shared = (ModelConfig, LoraSettings, TrainingSettings)
    assert (
        dataclasses.asdict(Config()) == {k: v for kind in shared for k, v in dataclasses.asdict(kind()).items()} | own
    )
    Config(patience=1), Config(select="last", loss="prompt_ce"), Config(captions="c", loss="unicl", append_label=True)
    captions = tmp_path / "c.csv"
    inputs = ModelConfig().inputs() | {"prompts": prompts_digest("reference")}
    assert Config(prompts="reference").inputs() == inputs
    assert Config(prompts="reference", loss="unicl", captions=str(captions)).inputs() == inputs, "told when it is read"
    captions.write_text("image_id,caption")
    named = inputs | {"captions": file_sha256(captions)}
    assert Config(prompts="reference", loss="unicl", captions=str(captions)).inputs() == named


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 99, "chunk_size": 4}, r"batch_size = 99: larger than the training set, 12 images"),
        ({"target_modules": ("nothing",)}, r"target_modules = \['nothing'\]: none of them is in the vision tower .* its linear layers are: attention.k_proj"),
        ({"target_modules": ("mlp.fc1",)}, "none of them is in the text tower"),
        ({"loss": "infonse"}, "did you mean 'infonce'"),
        ({"select": "lasst"}, "unknown select 'lasst'; did you mean 'last'"),
        ({"select": "last", "patience": 1}, "patience = 1: with select = last no validation is the better one"),
        ({"append_label": True}, "append_label = true needs captions"),
        ({"captions": "c.csv", "loss": "prompt_ce"}, "leave captions out, or set loss: unicl, infonce, siglip"),
        ({"augmentation": "heavy"}, "unknown augmentation 'heavy'; known: light, none, randomised, standard"),
        ({"rank": 0}, "rank = 0"),
        ({"lora_blocks": 3}, r"lora_blocks = 3: the vision tower of '.*' has 2 blocks; take at most 2"),
        ({"loss": "supcon", "captions": "c.csv"}, r"captions = 'c.csv': loss = 'supcon' reads no texts and tunes the vision tower alone; leave it out"),
        ({"loss": "supcon", "towers": "text"}, "towers = 'text': loss = 'supcon' .* leave it out, or choose another loss"),
        ({"loss": "cross_entropy", "projections": "train"}, "projections = 'train': .* leave it out"),
        ({"loss": "cross_entropy", "select": "zeroshot"}, "select = 'zeroshot': .* leave it out"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings: dict[str, Any], message: str, train: Train) -> None:
    with pytest.raises(ThoraclipError, match=message):
        train(**settings)


def test_bad_captions_and_projections_are_named(train: Train, split_manifest: Manifest, tmp_path: Path) -> None:
    empty = tmp_path / "3.csv"
    empty.write_text("image_id,caption\n" + "".join(f"{i},\n" for i in split_manifest.column("image_id")))
    siglip = str(save_checkpoint("siglip", tmp_path / "siglip"))
    cases: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"captions": write_some_captions(tmp_path / "1.parquet", split_manifest, more=("a.png",))}, MismatchError, "1 of 25 are for images"),
        ({"captions": write_some_captions(tmp_path / "2.parquet", split_manifest, leave_out=20)}, MismatchError, "have none, first"),
        ({"captions": str(empty)}, ManifestError, "empty text"),
        ({"model": siglip, "projections": "train"}, ConfigError, "has none; set projections = freeze"),
    )  # fmt: skip
    for settings, error, message in cases:
        with pytest.raises(error, match=message):
            train(**settings)
