"""`finetune`: LoRA fine-tuning of an encoder. Any batch size fits in memory.

    batch (rows) -+-> images, augmented once, or tokens behind frozen blocks -> vision tower --+
                  +-> texts, each different one once -> text tower ----------------------------+-> loss over the whole
                                                                                        batch (gradcache)

`run` trains one adapter per fold (`_train`; the loop is `Steps.run`) and scores its test images with the adapter that
validated best: zero-shot, or by a linear head where the loss reads no texts. `probe` takes the run folder as its
adapter. Everything random is a function of (seed, step, sample), so neither the chunk size, nor the number of
processes, nor a resumed run changes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from thoraclip.dtypes import Floats
from thoraclip.errors import ConfigError
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods.contrastive import CaptionTexts, ContrastiveStep, PromptTexts
from thoraclip.methods.encoders import EncoderConfig, ModelConfig, load_encoder
from thoraclip.methods.label_step import LabelStep, TrainedHead
from thoraclip.methods.losses import LOSSES
from thoraclip.methods.running import MethodOutput, RunContext, require_classes
from thoraclip.methods.tokens import make_cache, remove_tokens
from thoraclip.methods.training.folds import FoldTraining, train_folds
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.training.steps import Steps
from thoraclip.methods.zeroshot import prompted_classifier, prompts_digest, score_images
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.dual_encoder import load_dual_encoder, load_vision_encoder
from thoraclip.models.files import read_note
from thoraclip.models.heads import read_head, write_head
from thoraclip.models.lora import LoraSettings, add_lora
from thoraclip.ranges import BatchSize, OneOf, Range, Weight, Weighting
from thoraclip.runs import file_sha256, fold_folder
from thoraclip.tables.captions import append_label, read_captions

__all__ = ["Config", "run"]

_HEAD = "head.safetensors"
"""Beside the adapter of a loss without texts."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, LoraSettings, TrainingSettings):
    """What one fine-tuning needs."""

    captions: str = ""
    """Caption file, see thoraclip caption; empty: the text of an image is the mean vector of its class's prompts."""
    append_label: bool = False
    """Append the class name to the captions of the training images, as the reference study did."""
    prompts: str = "chest-xray-ensemble"
    """Prompt set that scores, and that is trained on where there are no captions."""
    loss: Annotated[str, OneOf(LOSSES)] = "prompt_ce"
    """On texts: prompt_ce (cross-entropy over class prompts), unicl, infonce, or siglip (with labels). Without texts,
    on the vision tower alone: supcon (supervised contrast), or cross_entropy of a linear head that is trained along."""
    batch_size: BatchSize = 16
    """Pairs per optimizer step; the loss sees all of them."""
    chunk_size: BatchSize = 32
    """Pairs per forward pass. Memory only: results do not depend on it."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 3e-4
    """Peak of AdamW's step size."""
    weight_decay: Weight = 0.01
    """AdamW's, on LoRA and projections."""
    prefix_views: Annotated[int, Range(0, 1_000)] = 4
    """lora_blocks: augmented views of each training image whose tokens behind the frozen blocks are computed once and
    kept on disk, one view without augmentation; 0 keeps none and computes them in every step."""
    temperature: Annotated[float, Range(0, 100, above=True)] = 0.1
    """supcon: what cosines are divided by."""
    train_logit_scale: bool = True
    """On texts: whether the logit scale is trained; it never exceeds logit_scale_max."""
    logit_scale_max: Annotated[float, Range(0, 1_000_000, above=True)] = 100.0
    """Upper bound of a trained logit scale (Radford et al. 2021, section 2.5)."""
    class_weight: Weighting = "none"
    """none, balanced (pairs of rare classes weigh more in the loss) or source (so do rare sources of a class, too)."""
    select: Annotated[str, OneOf(("auto", "zeroshot", "probe", "last"))] = "auto"
    """Which adapter is kept as the best: by validation macro F1 of what scores (auto: zero-shot, or the linear head of
    a loss without texts), of zeroshot or of a probe; or the last one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.append_label and not self.captions:
            raise ConfigError("append_label = true needs captions = FILE; class prompts name the class already")
        if self.captions and LOSSES[self.loss].on_prompts:
            others = [name for name, one in LOSSES.items() if one.takes_captions]
            raise ConfigError(
                f"loss = '{self.loss}' trains on class prompts; leave captions out, or set loss: {', '.join(others)}"
            )
        own = {"towers": "text", "projections": "train", "select": "zeroshot"}  # of losses on texts alone
        stated = [name for name, value in own.items() if getattr(self, name) == value]
        if not self.reads_texts and (self.captions or stated):
            name = "captions" if self.captions else stated[0]
            raise ConfigError(
                f"{name} = '{getattr(self, name)}': loss = '{self.loss}' reads no texts and tunes the vision tower "
                "alone; leave it out, or choose another loss"
            )

    @property
    def reads_texts(self) -> bool:
        """True for a loss that compares images with texts; the run is then scored zero-shot, else by a linear head."""
        return LOSSES[self.loss].reads_texts

    @property
    def lora(self) -> LoraSettings:
        """What is tuned: without texts the vision tower alone."""
        return self if self.reads_texts else replace(self, towers="vision", projections="freeze")

    @property
    def fits_head(self) -> bool:
        """True where a linear head is fitted on the training images as they are."""
        return not self.reads_texts or self.select == "probe"

    @property
    def reads_prompts(self) -> bool:
        """True where the class prompts are read."""
        return self.reads_texts

    def inputs(self) -> dict[str, str]:
        """Model, prompts and captions as they are now."""
        read = {"prompts": prompts_digest(self.prompts)} if self.reads_prompts else {}
        if self.captions and Path(self.captions).is_file():
            read["captions"] = file_sha256(Path(self.captions))
        return super().inputs() | read


def run(config: Config, context: RunContext) -> MethodOutput | None:
    """Train one adapter per fold (or one for the split), score its test images, pool.

    Returns:
        As every method; `None` in all but the first of several processes.
    """
    views = set[Path]()

    def train(training: FoldTraining[Config]) -> None:
        views.update(_train(training))

    output = train_folds("finetune", config, context, read_note=_read_note, train=train, score=_score)
    if output is None:
        return None
    if context.pixels is None:
        remove_tokens(context.folder.path / "pixels")
    elif views:
        remove_tokens(context.pixels, views)
    chosen = [one | ({"empty": True} if one["step"] == 0 else {}) for one in output.details["chosen"]]
    texts = {"prompt_set": load_prompts(config.prompts).name} if config.reads_prompts else {}
    return replace(output, details={**output.details, "chosen": chosen, **texts})


def _train(training: FoldTraining[Config]) -> Sequence[Path]:
    """Train the adapter of one fold; writes `adapter/`, `last/`, `metrics.jsonl` and `training.svg`, and the head of a
    loss without texts. Returns the folders of cached augmented views."""
    config, part, folder, step = training.config, training.part, training.folder, _prepare(training)
    tuned, steps = step.tuned, Steps(training, training.sampler(), _optimizer(config, step), step.state)
    if isinstance(step, LabelStep) and not steps.progress.rows:
        step.begin(part.train, part.val, config.class_weight)

    def validate() -> None:
        values = _scored(step, training)
        if config.select == "probe":
            is_probe = isinstance(step, LabelStep) and step.head is None and config.class_weight == "none"
            probed = values if is_probe else step.fit_head(part.train, part.val, training.labels)[1]
            values["val_probe_macro_f1"] = probed["val_macro_f1"]
        values = steps.log_validation(values)
        if LOSSES[config.loss].has_bias and tuned.bias == 0:
            # before the first step: begin where the mean logit is zero, not deep in saturation
            tuned.centre_bias(values["val_mean_cosine"])
        criterion = values["val_probe_macro_f1" if config.select == "probe" else "val_macro_f1"]
        steps.keep_best(None if config.select == "last" else criterion)

    progress = steps.run(step, validate)
    note = {"loss": config.loss}
    if training.group.is_main:
        training.write_curve(progress, validated="zero-shot" if config.reads_texts else "linear head")
        tuned.save(folder / "last", training.note(progress, progress.step) | note)
    steps.restore_best()
    if isinstance(step, LabelStep):
        head, _ = step.scoring_head(part.train, part.val, config.class_weight)
        if training.group.is_main:
            write_head(folder / _HEAD, head)
    if training.group.is_main:
        if progress.kept_step == 0:
            training.context.log(
                f"{training.title}no step beat the untouched encoder on validation; the kept adapter is empty"
            )
        # the best adapter comes last: its note marks the end of the training
        tuned.save(folder / "adapter", training.note(progress, progress.kept_step) | note)
    return step.tokens.view_folders if step.tokens else ()


def _scored(step: ContrastiveStep | LabelStep, training: FoldTraining[Config]) -> dict[str, float]:
    """The validation images by what scores the run."""
    part = training.part
    if isinstance(step, LabelStep):
        return step.scoring_head(part.train, part.val, training.config.class_weight)[1]
    return step.validate(part.val, _class_prompts(training))


def _prepare(training: FoldTraining[Config]) -> ContrastiveStep | LabelStep:
    """Encoder with LoRA, images and texts; a wrong setting is refused here, before the first step."""
    config, loss = training.config, LOSSES[training.config.loss]
    texts = _texts(training) if config.reads_texts else None
    load = load_dual_encoder if config.reads_texts else load_vision_encoder
    own = {name: getattr(config, name) for name in ("geometry", "remedy", "precision")}
    encoder = load(config.model, **own, device=str(training.group.device))
    tuned = add_lora(
        encoder,
        config.lora,
        seed=config.seed,
        train_scale=config.train_logit_scale and config.reads_texts,
        train_bias=loss.has_bias,
        checkpointing=config.gradient_checkpointing,
    )
    greys, targets, labels = training.shared_images(encoder.preprocess), training.targets, training.labels
    shared: dict[str, Any] = {
        "config": config,
        "loss": config.loss,
        "tuned": tuned,
        "greys": greys,
        "targets": targets,
        "group": training.group,
        "weight": None if config.class_weight == "none" else training.weights(),
        "sources": training.sources,
        "tokens": make_cache(training, tuned, greys),
    }
    if texts is not None:
        return ContrastiveStep(**shared, logit_scale_max=config.logit_scale_max, texts=texts)
    head = TrainedHead.of(tuned, len(labels)) if loss.has_head else None
    return LabelStep(**shared, labels=labels, head=head, temperature=config.temperature)


def _texts(training: FoldTraining[Config]) -> CaptionTexts | PromptTexts:
    """The captions of the training images, or the prompts of the classes."""
    config, rows = training.config, training.part.train
    if not config.captions:
        return PromptTexts.of(_class_prompts(training))
    captions = read_captions(Path(config.captions))
    own = captions.rows_for(training.context.manifest, rows)
    texts = [captions.text[row] for row in own]
    if config.append_label:
        names = [training.labels.names[target] for target in training.targets[rows]]
        labelled = [captions.with_label[row] for row in own]
        texts = [t if has else append_label(t, name) for t, name, has in zip(texts, names, labelled, strict=True)]
    return CaptionTexts.of(rows.tolist(), texts)


def _class_prompts(training: FoldTraining[Config]) -> list[tuple[str, ...]]:
    """The prompts of each class."""
    prompts = load_prompts(training.config.prompts)
    return [prompts.for_class(name) for name in training.labels.names]


def _optimizer(config: Config, step: ContrastiveStep | LabelStep) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); what belongs to the loss does not decay."""
    groups: Sequence[dict[str, Any]] = [
        {"params": list(step.tuned.encoder_parameters.values()), "weight_decay": config.weight_decay},
        {"params": list(step.loss_parameters.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)


def _read_note(folder: Path) -> Mapping[str, Any]:
    """What stands beside the best adapter of a training."""
    note = read_note(folder / "adapter")
    return note.facts if note else {}


def _score(training: FoldTraining[Config]) -> tuple[Floats, Floats]:
    """The test and the validation rows with the adapter that was kept: zero-shot, or by its head."""
    config, part, context = training.config, training.part, training.context
    encoder, rows = _encoder_config(config, training.folder), np.concatenate([part.test, part.val])
    if config.reads_texts:
        scores = score_images(encoder, training.labels, load_prompts(config.prompts), context, rows).scores
    else:
        embedded = context.embeddings(encoder, load_encoder(encoder), rows)
        features = embedded.pooled[embedded.rows_for(context.manifest.take(rows))]
        scores = read_head(training.folder / _HEAD).predict(features)
    return scores[: len(part.test)], scores[len(part.test) :]


def _encoder_config(config: Config, folder: Path) -> EncoderConfig:
    same = {name: getattr(config, name) for name in ("model", "geometry", "remedy", "precision", "runtime")}
    return EncoderConfig(adapter=str(folder / "adapter"), **same)


def load_classifier(config: Config, folder: Path, fold: int | None, labels: LabelSet) -> EncoderClassifier:
    """The base with the adapter of the fold, and the class prompts or the trained head as its head."""
    own = fold_folder(folder, fold)
    encoder = _encoder_config(config, own)
    if config.reads_texts:
        return prompted_classifier(encoder, config.prompts, labels)
    head = read_head(own / _HEAD)
    require_classes(folder, head.labels, labels)
    return EncoderClassifier(load_encoder(encoder), head, "pooled")
