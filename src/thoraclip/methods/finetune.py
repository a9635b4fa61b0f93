"""`finetune`: LoRA fine-tuning of a dual encoder with a contrastive loss. Any batch size fits in memory.

    batch (rows) -+-> images, augmented once -> vision tower --+
                  +-> texts, each different one once -> text tower -+-> loss over the whole batch (gradcache)

`run` trains one adapter per fold (`_train`; the loop is `Steps.run`) and scores its test images zero-shot with the
adapter that validated best; `probe` takes the run folder as its adapter. Everything random is a function of (seed,
step, sample), so neither the chunk size, nor the number of processes, nor a resumed run changes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import torch

from thoraclip.errors import ConfigError
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods.contrastive import CaptionTexts, ContrastiveStep, PromptTexts
from thoraclip.methods.encoders import EncoderConfig, ModelConfig
from thoraclip.methods.losses import LOSSES
from thoraclip.methods.running import MethodOutput, RunContext
from thoraclip.methods.training.folds import FoldTraining, train_folds
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.training.steps import Steps
from thoraclip.methods.zeroshot import prompted_classifier, prompts_digest, score_images
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.files import read_note
from thoraclip.models.heads import class_weights
from thoraclip.models.lora import LoraSettings, TunableEncoder, add_lora
from thoraclip.ranges import BatchSize, OneOf, Range, Weight, Weighting
from thoraclip.runs import file_sha256, fold_folder
from thoraclip.tables.captions import append_label, read_captions

if TYPE_CHECKING:
    from thoraclip.models.classifiers import EncoderClassifier

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, LoraSettings, TrainingSettings):
    """What one fine-tuning needs."""

    captions: str = ""
    """Caption file, see thoraclip caption; empty: the text of an image is the mean vector of its class's prompts."""
    append_label: bool = False
    """Append the class name to the captions of the training images, as the reference study did."""
    prompts: str = "chest-xray-ensemble"
    """Prompt set that scores, and that is trained on where there are no captions."""
    loss: Annotated[str, OneOf(LOSSES)] = "unicl"
    """unicl, infonce, siglip (with labels), or prompt_ce (cross-entropy over class prompts)."""
    batch_size: BatchSize = 256
    """Pairs per optimizer step; the loss sees all of them."""
    chunk_size: BatchSize = 32
    """Pairs per forward pass. Memory only: results do not depend on it."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 3e-4
    """Peak of AdamW's step size."""
    weight_decay: Weight = 0.01
    """AdamW's, on LoRA and projections."""
    train_logit_scale: bool = True
    """Whether the logit scale is trained; it never exceeds logit_scale_max."""
    logit_scale_max: Annotated[float, Range(0, 1_000_000, above=True)] = 100.0
    """Upper bound of a trained logit scale (Radford et al. 2021, section 2.5)."""
    class_weight: Weighting = "none"
    """none or balanced: whether pairs of rare classes weigh more in the loss."""
    select: Annotated[str, OneOf(("zeroshot", "probe", "last"))] = "zeroshot"
    """Which adapter is kept as the best: by validation macro F1 of zeroshot or of a probe; or the last one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.append_label and not self.captions:
            raise ConfigError("append_label = true needs captions = FILE; class prompts name the class already")
        if self.captions and LOSSES[self.loss].on_prompts:
            raise ConfigError(
                f"loss = '{self.loss}' trains on class prompts; leave captions out, or choose another loss"
            )

    @property
    def reads_texts(self) -> bool:
        """Always, by now: every loss is on texts."""
        return True

    def inputs(self) -> dict[str, str]:
        """Model, prompts and captions as they are now."""
        read = {"prompts": prompts_digest(self.prompts)}
        if self.captions and Path(self.captions).is_file():
            read["captions"] = file_sha256(Path(self.captions))
        return super().inputs() | read


def run(config: Config, context: RunContext) -> MethodOutput | None:
    """Train one adapter per fold (or one for the split), score its test images zero-shot, pool.

    Returns:
        As every method; `None` in all but the first of several processes.
    """
    output = train_folds("finetune", config, context, read_note=_read_note, train=_train, score=_score)
    prompt_set = load_prompts(config.prompts).name
    return output and replace(output, details={**output.details, "prompt_set": prompt_set})


def _train(training: FoldTraining[Config]) -> None:
    """Train the adapter of one fold; writes `adapter/`, `last/`, `metrics.jsonl` and `training.svg`."""
    config, part, sampler, folder = training.config, training.part, training.sampler(), training.folder
    step = _prepare(training)
    tuned, prompts = step.tuned, _class_prompts(training)
    steps = Steps(training, sampler, _optimizer(config, tuned), tuned.parameters)

    def validate() -> None:
        values = step.validate(part.val, prompts)
        if config.select == "probe":
            values |= step.validate_probe(part.train, part.val, training.labels)
        values = steps.log_validation(values)
        if LOSSES[config.loss].has_bias and tuned.bias == 0:
            # before the first step: begin where the mean logit is zero, not deep in saturation
            tuned.centre_bias(values["val_mean_cosine"])
        names = {"zeroshot": "val_macro_f1", "probe": "val_probe_macro_f1"}
        steps.keep_best(values[names[config.select]] if config.select in names else None)

    progress = steps.run(step, validate)
    if training.group.is_main:
        training.write_curve(progress, validated="zero-shot")
        tuned.save(folder / "last", training.note(progress, progress.step) | {"loss": config.loss})
        steps.restore_best()
        # the best adapter comes last: its note marks the end of the training
        tuned.save(folder / "adapter", training.note(progress, progress.kept_step) | {"loss": config.loss})


def _prepare(training: FoldTraining[Config]) -> ContrastiveStep:
    """Encoder with LoRA, images and texts; a wrong setting is refused here, before the first step."""
    config, rows = training.config, training.part.train
    texts = _texts(training)
    encoder = load_dual_encoder(
        config.model, geometry=config.geometry, precision=config.precision, device=str(training.group.device)
    )
    tuned = add_lora(
        encoder,
        config,
        seed=config.seed,
        train_scale=config.train_logit_scale,
        train_bias=LOSSES[config.loss].has_bias,
        checkpointing=config.gradient_checkpointing,
    )
    greys, targets = training.shared_images(encoder.preprocess), training.targets
    weight = class_weights(targets[rows], len(training.labels), config.class_weight)
    each = None if config.class_weight == "none" else weight
    loss, bound, group = config.loss, config.logit_scale_max, training.group
    return ContrastiveStep(config, loss, bound, tuned, greys, targets, texts, group, each)


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


def _optimizer(config: Config, tuned: TunableEncoder) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); the loss's own two numbers do not decay."""
    groups: Sequence[dict[str, Any]] = [
        {"params": list(tuned.encoder_parameters.values()), "weight_decay": config.weight_decay},
        {"params": list(tuned.loss_parameters.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)


def _read_note(folder: Path) -> Mapping[str, Any]:
    """What stands beside the best adapter of a training."""
    note = read_note(folder / "adapter")
    return note.facts if note else {}


def _score(training: FoldTraining[Config]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The test and the validation rows, zero-shot with the adapter that was kept."""
    config, part = training.config, training.part
    encoder, prompts = _encoder_config(config, training.folder), load_prompts(config.prompts)
    scores = score_images(encoder, training.labels, prompts, training.context).scores
    return scores[part.test], scores[part.val]


def _encoder_config(config: Config, folder: Path) -> EncoderConfig:
    same = {name: getattr(config, name) for name in ("model", "geometry", "precision", "runtime")}
    return EncoderConfig(adapter=str(folder / "adapter"), **same)


def load_classifier(config: Config, folder: Path, fold: int | None, labels: LabelSet) -> EncoderClassifier:
    """The base with the adapter of the fold, and the class prompts as its head."""
    return prompted_classifier(_encoder_config(config, fold_folder(folder, fold)), config.prompts, labels)
