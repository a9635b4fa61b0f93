"""`finetune`: LoRA on a dual encoder, with a contrastive loss over batches of any size.

    step -> batch (rows) -+-> pixels, augmented once -> vision tower --+
                          +-> texts, each different one once -> text tower -+-> loss over the whole batch (gradcache)

Scored zero-shot with the best adapter by validation; `probe` takes the run folder as its adapter. Everything random is a
function of (seed, step, sample), so neither the chunk size, nor the number of processes, nor a resumed run changes it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thoraclip.data.batches import pixel_cache
from thoraclip.errors import ConfigError, InputError, TrainingError, did_you_mean
from thoraclip.judge.figures import training_figure
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods import losses
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.embed import EncoderConfig, ModelConfig
from thoraclip.methods.pairs import CaptionTexts, PairTexts, PromptTexts
from thoraclip.methods.processes import ProcessGroup, require_trackers
from thoraclip.methods.running import Context, Part, parts, predictions_of
from thoraclip.methods.training import (
    SAMPLINGS,
    Batch,
    Checkpoint,
    Progressing,
    Sampler,
    learning_rate_at,
    require_positive,
    stop_requests,
)  # fmt: skip
from thoraclip.methods.zeroshot import score_images
from thoraclip.models.adapter import read_note
from thoraclip.models.augment import Augmentation
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.heads import class_weights
from thoraclip.models.lora import LoraSettings, TunableEncoder, add_lora
from thoraclip.runs import canonical_json, digest, file_sha256, write_text
from thoraclip.tables.captions import append_label, read_captions
from thoraclip.tables.predictions import Predictions

__all__ = ["Config", "run"]

_SELECTIONS = ("zeroshot", "probe", "last")
_WEIGHTINGS = ("none", "balanced")


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, LoraSettings, Augmentation):
    """What one fine-tuning needs."""

    captions: str = ""
    """Caption file, see thoraclip caption; empty: each image gets one of its class's prompts, another one in every step."""
    append_label: bool = False
    """Append the class name to the captions of the training images, as the reference study did."""
    prompts: str = "chest-xray-ensemble"
    """Prompt set that scores, and that is trained on where there are no captions."""
    loss: str = "unicl"
    """unicl, infonce, siglip (with labels), or prompt_ce (cross-entropy over class prompts)."""
    batch_size: int = 256
    """Pairs per optimizer step; the loss sees all of them."""
    chunk_size: int = 32
    """Pairs per forward pass. Memory only: results do not depend on it."""
    epochs: int = 10
    """Passes over the training images; an incomplete last batch is left out."""
    steps: int = 0
    """Optimizer steps; 0 counts in epochs."""
    learning_rate: float = 3e-4
    """Peak of AdamW's step size."""
    warmup_steps: int = -1
    """Steps of linear warm-up before the cosine; -1 for a tenth of all."""
    weight_decay: float = 0.01
    """AdamW's, on LoRA and projections."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    train_logit_scale: bool = True
    """Whether the logit scale is trained; it never exceeds logit_scale_max."""
    logit_scale_max: float = 100.0
    """Upper bound of a trained logit scale (Radford et al. 2021, section 2.5)."""
    class_weight: str = "none"
    """none or balanced: whether pairs of rare classes weigh more in the loss."""
    sampling: str = "shuffle"
    """shuffle (every image once an epoch) or balanced (as many of each class)."""
    augmentation: bool = True
    """Turn, move, zoom and change the grey of training images; never upside down, and mirrored only if asked for."""
    val_fraction: float = 0.1
    """Share of the training images held out by patient where the manifest names no validation split."""
    validate_every: int = 0
    """Steps between validations; 0 for once an epoch."""
    select: str = "zeroshot"
    """Which adapter is kept as the best: by validation macro F1 of zeroshot or of a probe; or the last one."""
    patience: int = 0
    """Stop after this many validations without a better one; 0 never stops early."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, more time."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; one is also written at SIGINT and SIGTERM."""
    processes: int = 0
    """How many processes there must be; 0 takes as many as were launched."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the metrics too: mlflow, tensorboard, trackio, wandb. Their files tell the time, so that, unlike
    the rest of a run folder, they are other bytes in every run."""
    seed: int = 0
    """Decides initial values, held-out part, order, augmentation and dropout."""

    NOT_IN_THE_RESULT = ("checkpoint_minutes", "processes", "trackers")

    def __post_init__(self) -> None:
        LoraSettings.__post_init__(self)
        Augmentation.__post_init__(self)
        choices = {"loss": losses.LOSSES, "select": _SELECTIONS, "class_weight": _WEIGHTINGS, "sampling": SAMPLINGS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name} '{value}'{did_you_mean(value, known)}")
        require_positive(
            batch_size=self.batch_size, chunk_size=self.chunk_size, epochs=self.epochs, learning_rate=self.learning_rate,
            logit_scale_max=self.logit_scale_max, checkpoint_minutes=self.checkpoint_minutes,
        )  # fmt: skip
        if self.chunk_size > self.batch_size:
            raise ConfigError(
                f"chunk_size = {self.chunk_size} exceeds batch_size = {self.batch_size}; a chunk is a part of a batch"
            )
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction = {self.val_fraction}: a number between 0 and 1 is needed")
        require_trackers(self.trackers)
        for name in ("steps", "validate_every", "patience", "processes", "weight_decay", "max_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must not be negative")
        if self.append_label and not self.captions:
            raise ConfigError("append_label = true needs captions = FILE; class prompts name the class already")
        if self.captions and self.loss == "prompt_ce":
            raise ConfigError("loss = 'prompt_ce' trains on class prompts; leave captions out, or choose another loss")

    def inputs(self) -> dict[str, str]:
        """Model, prompts and captions as they are now."""
        prompts = load_prompts(self.prompts)
        read = {"prompts": digest([prompts.templates, dict(prompts.classes), dict(prompts.prompts)])}
        if self.captions and Path(self.captions).is_file():
            read["captions"] = file_sha256(Path(self.captions))
        return super().inputs() | read


def run(config: Config, context: Context) -> tuple[Predictions, dict[str, Any], list[Mapping[str, object]]] | None:
    """Tune one adapter per fold (or one for the split), score its test images zero-shot, pool.

    Returns:
        As every method; `None` in all but the first of several processes.
    """
    with ProcessGroup(wanted=config.processes, trackers=config.trackers, folder=context.folder.path) as group:
        if group.count > 1 and group.is_main:
            context.announce(f"finetune: {group.count} processes")
        return _run(config, context, group)


def _run(
    config: Config, context: Context, group: ProcessGroup
) -> tuple[Predictions, dict[str, Any], list[Mapping[str, object]]] | None:
    manifest, prompts = context.manifest, load_prompts(config.prompts)
    labels = manifest.label_set(config.classes)
    rows, scores, chosen = [], [], []
    metrics: list[Mapping[str, object]] = []
    group.track(dataclasses.asdict(config))
    for part in parts(manifest, labels, val_fraction=config.val_fraction, seed=config.seed, only=config.only_folds):
        folder = context.folder.path / ("" if part.fold is None else f"fold-{part.fold}")
        token = digest([context.fingerprint, part.fold])
        if not group.first(_is_trained(folder, token)):
            _train(config, context, part, labels, group, folder, token)
        group.wait()
        if group.is_main:
            facts = _facts(folder)
            chosen.append({"fold": part.fold, **{k: facts[k] for k in ("best_step", "steps", "validation")}})
            metrics += [{"fold": part.fold, **row} for row in _read_rows(folder)]
            encoder = EncoderConfig(
                model=config.model,
                adapter=str(folder / "adapter"),
                geometry=config.geometry,
                precision=config.precision,
            )
            rows.append(part.test)
            scores.append(score_images(encoder, labels, prompts, context).scores[part.test])
        group.wait()  # a mistake in the next fold then meets all at once, not the first one in the midst of scoring
    if not group.is_main:
        return None
    order = np.argsort(np.concatenate(rows), kind="stable")
    predictions = predictions_of(manifest, labels, np.concatenate(rows)[order], np.concatenate(scores)[order])
    return predictions, {"chosen": chosen, "prompt_set": prompts.name}, metrics


def _train(
    config: Config,
    context: Context,
    part: Part,
    labels: LabelSet,
    group: ProcessGroup,
    folder: Path,
    token: str,
) -> None:
    """The loop: from the checkpoint, if there is one, to `adapter/`, `last/`, `metrics.jsonl` and `training.svg`."""
    contrast, sampler = _prepare(config, context, part, labels, group)
    tuned, prompts = contrast.tuned, load_prompts(config.prompts)
    texts = [prompts.for_class(name) for name in labels.names]
    steps = config.steps or config.epochs * sampler.steps_per_epoch
    every = config.validate_every or sampler.steps_per_epoch
    optimizer = _optimizer(config, tuned)
    checkpoint = Checkpoint(folder / "training.safetensors", token=token, minutes=config.checkpoint_minutes)
    done = checkpoint.read(tuned.parameters, optimizer)
    if group.any(done.step != group.first(done.step)):
        raise InputError(
            f"{folder}: not every process sees the same files there; name a folder that all machines share"
        )
    if not done.rows:
        _validate(contrast, part, texts, labels, done)
        if config.loss == "siglip" and tuned.bias == 0:  # begin where the mean logit is zero, not deep in saturation
            tuned.bias.data.fill_(-float(tuned.log_scale.detach().exp()) * done.rows[0]["val_mean_cosine"])
    with stop_requests() as stop:
        while done.step < steps and not (config.patience and done.waited >= config.patience):
            batch = sampler.batch(done.step)
            rate = learning_rate_at(done.step, steps=steps, warmup_steps=config.warmup_steps, peak=config.learning_rate)
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            loss = contrast.backward(batch)
            norm = float(torch.nn.utils.clip_grad_norm_(tuned.parameters.values(), config.max_norm or torch.inf))
            if not (np.isfinite(loss) and np.isfinite(norm)):
                _give_up(context, config, batch, loss, checkpoint, done, tuned, optimizer, group)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            tuned.clamp_scale(config.logit_scale_max)
            done.step += 1
            row = {
                "step": done.step,
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": norm,
                "logit_scale": float(tuned.log_scale.detach().exp()),
            }
            done.rows.append(row)
            group.track(values=_of_fold(part, row), step=done.step)
            if done.step % every == 0 or done.step == steps:
                _validate(contrast, part, texts, labels, done)
                group.track(values=_of_fold(part, done.rows[-1]), step=done.step)
            if context.progress:
                context.progress(done.step, steps)
            stopping = group.any(stop.is_set())
            if group.is_main and (stopping or checkpoint.is_due):
                checkpoint.write(done, tuned.parameters, optimizer)
            if stopping:
                group.wait()
                raise KeyboardInterrupt
    if group.is_main:
        _keep(config, context, part, folder, token, tuned, done)
        checkpoint.remove()


def _prepare(
    config: Config, context: Context, part: Part, labels: LabelSet, group: ProcessGroup
) -> tuple[Contrast, Sampler]:
    """Encoder with LoRA, pictures, texts and the order of the samples."""
    manifest = context.manifest
    targets = manifest.targets(labels)
    sampler = Sampler(
        part.train, targets[part.train], total=len(manifest), batch_size=config.batch_size, sampling=config.sampling,
        seed=config.seed,
    )  # fmt: skip
    encoder = load_dual_encoder(
        config.model, geometry=config.geometry, precision=config.precision, device=str(group.device)
    )
    texts = _texts(config, context, part, labels)
    tuned = add_lora(
        encoder, config, seed=config.seed, train_scale=config.train_logit_scale, train_bias=config.loss == "siglip",
        checkpointing=config.gradient_checkpointing,
    )  # fmt: skip
    weight = class_weights(targets[part.train], len(labels), config.class_weight)
    return Contrast(config, tuned, _pictures(encoder, context, group), targets, weight, texts, group), sampler


def _pictures(encoder: DualEncoder, context: Context, group: ProcessGroup) -> Any:
    """u8[N, S, S] from the pixel cache, which the first process makes."""
    folder = context.pixels or context.folder.path / "pixels"
    if not group.is_main:
        group.wait()
    pictures = pixel_cache(context.manifest, encoder.preprocess, folder, progress=context.progress).pixels
    if group.is_main:
        group.wait()
    return pictures


def _texts(config: Config, context: Context, part: Part, labels: LabelSet) -> PairTexts:
    targets = context.manifest.targets(labels)
    if not config.captions:
        prompts = load_prompts(config.prompts)
        return PromptTexts.of([prompts.for_class(name) for name in labels.names], targets, config.seed)
    captions = read_captions(Path(config.captions))
    texts = captions.texts_for(context.manifest, part.train)
    if config.append_label:
        names = [labels.names[target] for target in targets[part.train]]
        has = captions.labelled_for(context.manifest, part.train)
        texts = [
            text if there else append_label(text, name) for text, name, there in zip(texts, names, has, strict=True)
        ]
    return CaptionTexts.of(part.train.tolist(), texts)


def _optimizer(config: Config, tuned: TunableEncoder) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); the loss's own two numbers do not decay."""
    groups = [
        {"params": list(tuned.encoder_parameters.values()), "weight_decay": config.weight_decay},
        {"params": list(tuned.loss_parameters.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)


def _validate(
    contrast: Contrast, part: Part, texts: list[tuple[str, ...]], labels: LabelSet, done: Progressing
) -> None:
    """Add a row of validation values, and keep the tensors where they are the best so far."""
    select = contrast.config.select
    values = contrast.validate(part.val, texts)
    if select == "probe":
        values |= contrast.validate_probe(part.train, part.val, labels)
    values = {name: contrast.group.first(value) for name, value in values.items()}
    done.rows.append({"step": done.step, **values})
    if select != "last":
        value = values["val_probe_macro_f1" if select == "probe" else "val_macro_f1"]
        done.note(value, contrast.tuned.snapshot() if value > done.best_value else {})


def _give_up(
    context: Context,
    config: Config,
    batch: Batch,
    loss: float,
    checkpoint: Checkpoint,
    done: Progressing,
    tuned: TunableEncoder,
    optimizer: torch.optim.Optimizer,
    group: ProcessGroup,
) -> None:
    """Keep the last good weights and say which batch spoilt them."""
    if group.is_main:
        checkpoint.write(done, tuned.parameters, optimizer)
    group.wait()
    ids = context.manifest.column("image_id")
    what = f"the loss is {loss}" if not np.isfinite(loss) else "a gradient is not finite"
    raise TrainingError(
        f"step {batch.step + 1}: {what}, in the batch of {len(batch.rows)} images that begins with '{ids[batch.rows[0]]}'; "
        f"the weights of step {done.step} are kept in {checkpoint.path}; lower learning_rate = {config.learning_rate:g}, "
        "or set precision = fp32"
    )


def _keep(
    config: Config, context: Context, part: Part, folder: Path, token: str, tuned: TunableEncoder, done: Progressing
) -> None:
    """Write metrics, figure, last and best adapter; the best one comes last and marks the end."""
    write_text(folder / "metrics.jsonl", "".join(canonical_json(row) + "\n" for row in done.rows))
    best_step = done.best_step if done.best else done.step
    write_text(folder / "training.svg", training_figure(done.rows, best_step=best_step))
    contents = context.manifest.column("sha256")
    validations = {row["step"]: row for row in done.rows if "val_macro_f1" in row}
    common = {
        "token": token, "steps": done.step, "loss": config.loss, "batch_size": config.batch_size, "fold": part.fold,
        "trained_on": sorted(contents[row] for row in part.train), "chosen_on": sorted(contents[row] for row in part.val),
    }  # fmt: skip
    tuned.save(folder / "last", {**common, "best_step": done.step, "validation": validations.get(done.step)})
    if done.best:
        tuned.restore(done.best)
    tuned.save(folder / "adapter", {**common, "best_step": best_step, "validation": validations.get(best_step)})


def _is_trained(folder: Path, token: str) -> bool:
    try:
        return bool(_facts(folder).get("token") == token)
    except InputError:
        return False


def _facts(folder: Path) -> Mapping[str, Any]:
    note = read_note(folder / "adapter")
    return note.facts if note else {}


def _of_fold(part: Part, row: Mapping[str, Any]) -> dict[str, float]:
    """A row of metrics under names of its own, where several folds go to one tracker."""
    where = "" if part.fold is None else f"fold-{part.fold}/"
    return {f"{where}{name}": value for name, value in row.items() if name != "step"}


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
