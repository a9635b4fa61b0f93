"""`finetune`: LoRA on a dual encoder, with a contrastive loss over batches of any size.

    step -> batch (rows) -+-> pixels, augmented once -> vision tower --+
                          +-> texts, each different one once -> text tower -+-> loss over the whole batch (gradcache)

Scored zero-shot with the best adapter by validation; `probe` takes the run folder as its adapter. Everything random is a
function of (seed, step, sample), so neither the chunk size, nor the number of processes, nor a resumed run changes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thoraclip.errors import ConfigError, InputError, did_you_mean
from thoraclip.labels import load_prompts
from thoraclip.methods import losses
from thoraclip.methods.embed import EncoderConfig, ModelConfig
from thoraclip.methods.processes import ProcessGroup, require_trackers
from thoraclip.methods.running import Context, parts, pooled_predictions
from thoraclip.methods.training import SAMPLINGS, Checkpoint, learning_rate_at, require_positive, stop_requests
from thoraclip.methods.tuning import Round, optimizer_of
from thoraclip.methods.zeroshot import prompts_digest, score_images
from thoraclip.models.augment import Augmentation
from thoraclip.models.lora import LoraSettings
from thoraclip.runs import file_sha256
from thoraclip.tables.predictions import Predictions

__all__ = ["Config", "run"]

_SELECTIONS = ("zeroshot", "probe", "last")
_WEIGHTINGS = ("none", "balanced")


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, LoraSettings, Augmentation):
    """What one fine-tuning needs."""

    captions: str = ""
    """Caption file, see thoraclip caption; empty: the text of an image is the mean vector of its class's prompts."""
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
        read = {"prompts": prompts_digest(self.prompts)}
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
        one = Round(config, context, part, labels, group)
        if not group.first(one.is_trained):
            _train(one)
        group.wait()
        if group.is_main:
            metrics += one.metrics
            chosen.append({"fold": part.fold, **{k: one.facts[k] for k in ("step", "steps", "validation")}})
            encoder = EncoderConfig(
                model=config.model, adapter=str(one.folder / "adapter"), geometry=config.geometry, precision=config.precision
            )  # fmt: skip
            rows.append(part.test)
            scores.append(score_images(encoder, labels, prompts, context).scores[part.test])
        group.wait()  # a mistake in the next fold then meets all at once, not the first one in the midst of scoring
    if not group.is_main:
        return None
    predictions = pooled_predictions(manifest, labels, rows, scores)
    return predictions, {"chosen": chosen, "prompt_set": prompts.name}, metrics


def _train(one: Round) -> None:
    """The loop: from the checkpoint, if there is one, to `adapter/`, `last/`, `metrics.jsonl` and `training.svg`."""
    config, context, group = one.config, one.context, one.group
    contrast, sampler = one.prepare()
    tuned, optimizer = contrast.tuned, optimizer_of(config, contrast.tuned)
    steps = config.steps or config.epochs * sampler.steps_per_epoch
    every = config.validate_every or sampler.steps_per_epoch
    checkpoint = Checkpoint(one.folder / "training.safetensors", token=one.token, minutes=config.checkpoint_minutes)
    done = checkpoint.read(tuned.parameters, optimizer)
    if group.any(done.step != group.first(done.step)):
        raise InputError(
            f"{one.folder}: not every process sees the same files there; name a folder that all machines share"
        )

    def save() -> Path:
        if group.is_main:
            checkpoint.write(done, tuned.parameters, optimizer)
        return checkpoint.path

    if not done.rows:
        one.validate(contrast, done)
        if config.loss == "siglip" and tuned.bias == 0:  # begin where the mean logit is zero, not deep in saturation
            tuned.centre_bias(done.rows[0]["val_mean_cosine"])
    with stop_requests() as stop:
        while done.step < steps and not (config.patience and done.waited >= config.patience):
            batch = sampler.batch(done.step)
            rate = learning_rate_at(done.step, steps=steps, warmup_steps=config.warmup_steps, peak=config.learning_rate)
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            loss = contrast.backward(batch)
            norm = float(nn.utils.clip_grad_norm_(tuned.parameters.values(), config.max_norm or torch.inf))
            one.require_finite(loss, norm, batch, done, save)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scale = tuned.clamp_scale(config.logit_scale_max)
            done.step += 1
            done.rows.append(
                {"step": done.step, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "logit_scale": scale}
            )
            one.track(done)
            if done.step % every == 0 or done.step == steps:
                one.validate(contrast, done)
            if context.progress:
                context.progress(done.step, steps)
            stopping = group.any(stop.is_set())
            if stopping or checkpoint.is_due:
                save()
            if stopping:
                group.wait()
                raise KeyboardInterrupt
    if group.is_main:
        one.keep(tuned, done)
        checkpoint.remove()
