"""`baseline`: an image classifier under cross-entropy, all of it or its head alone.

    batch (rows) -> images, augmented once -> (mixed) -> network, chunk by chunk -> cross-entropy over the batch

Any image classifier that Transformers has (ResNet, ViT, ConvNeXt, ...), or the vision tower of a dual encoder with a
linear layer on its pooled output: `train = all` fine-tunes it, `train = head` is a linear classifier on a frozen
tower. `run` trains one network per fold (`_train`, whose loop is `_fit`) and scores its test images with the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thoraclip.config import require_known
from thoraclip.errors import ConfigError, InputError
from thoraclip.labels import LabelSet
from thoraclip.methods.encoders import ModelConfig
from thoraclip.methods.running import MethodOutput, RunContext, require_classes
from thoraclip.methods.supervised import SupervisedStep, layer_groups, scores_of
from thoraclip.methods.training.checkpoint import stop_requests
from thoraclip.methods.training.folds import FoldTraining, train_folds
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.training.steps import Steps
from thoraclip.models.augment import AUGMENTATIONS
from thoraclip.models.backbones import Backbone, load_backbone, load_trained, read_trained_note
from thoraclip.models.dual_encoder import recompute_layers
from thoraclip.models.heads import class_weights
from thoraclip.runs import fold_folder

__all__ = ["Config", "run"]

_TRAINED = ("all", "head")
_NORMS = ("batch", "frozen")
_SELECTIONS = ("macro_f1", "log_loss", "last")


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, TrainingSettings):
    """What one baseline needs."""

    model: str = "tiny-clip"
    """Hub id, local folder, or tiny-clip: an image classifier that Transformers has, such as microsoft/resnet-18 or
    google/vit-base-patch16-224, or a dual encoder, whose vision tower is taken."""
    pretrained: bool = True
    """Begin from the checkpoint's weights; false draws all of them anew."""
    train: str = "all"
    """all (end to end) or head (a linear classifier on frozen features)."""
    layer_decay: float = 1.0
    """The learning rate of each layer is this times that of the layer above it; 1 for the same in all, 0.75 suits
    ViT."""
    batch_norm: str = "batch"
    """Of networks that have it: batch (statistics of the batch, in one chunk and one process) or frozen (the
    checkpoint's)."""
    label_smoothing: float = 0.0
    """Share of every target that is spread over all classes."""
    weight_decay: float = 0.05
    """AdamW's, on matrices and filters; biases and norms have none."""
    select: str = "macro_f1"
    """Which weights are kept as the best: by validation macro_f1 or log_loss; or the last ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, train=_TRAINED, batch_norm=_NORMS, select=_SELECTIONS)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay = {self.layer_decay}: a number above 0, at most 1, is needed")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing = {self.label_smoothing}: a number from 0 to below 1 is needed")
        if self.gradient_checkpointing and self.train == "head":
            raise ConfigError("gradient_checkpointing = true: a frozen network has no backward pass; leave it out")


def run(config: Config, context: RunContext) -> MethodOutput | None:
    """Train one network per fold (or one for the split), score its test images, pool.

    Returns:
        As every method; `None` in all but the first of several processes.
    """
    return train_folds("baseline", config, context, read_note=_read_note, train=_train, score=_score)


def _train(training: FoldTraining[Config]) -> None:
    """Train the network of one fold; writes `model/`, `metrics.jsonl` and `training.svg`."""
    config, sampler = training.config, training.sampler()
    step = _prepare(training)
    steps = Steps(training, sampler, _optimizer(config, step), step.state)
    _fit(config, steps, step, lambda: _validate(training, steps, step))
    if training.group.is_main:
        progress = steps.progress
        if progress.best:
            step.backbone.restore(progress.best)
        training.write_curve(progress)
        note = training.note(progress, progress.kept_step) | {"model": config.model}
        step.backbone.save(training.folder / "model", note)


def _fit(config: Config, steps: Steps, step: SupervisedStep, validate: Callable[[], None]) -> None:
    """The loop: from the checkpoint, if there is one, to the last step or the end of patience."""
    optimizer, parameters = steps.optimizer, step.parameters
    if steps.is_new:
        validate()
    with stop_requests() as stop:
        while steps.are_left:
            batch, rate = steps.begin()
            loss = step.backward(batch)
            norm = float(nn.utils.clip_grad_norm_(parameters.values(), config.max_norm or torch.inf))
            steps.require_finite(batch, loss=loss, gradient_norm=norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps.log(loss=loss, learning_rate=rate, gradient_norm=norm)
            if steps.is_validation_due:
                validate()
            steps.end(stop)


def _validate(training: FoldTraining[Config], steps: Steps, step: SupervisedStep) -> None:
    """Score the validation images; keep the weights where they are the best."""
    values = steps.log_validation(step.validate(training.part.val))
    criteria = {"macro_f1": values["val_macro_f1"], "log_loss": -values["val_log_loss"]}
    steps.keep_best(criteria.get(training.config.select))


def _prepare(training: FoldTraining[Config]) -> SupervisedStep:
    """Network and images; a wrong setting is refused here. What is not trained has no gradient."""
    config, rows = training.config, training.part.train
    backbone = load_backbone(
        config.model,
        training.labels,
        pretrained=config.pretrained,
        seed=config.seed,
        geometry=config.geometry,
        precision=config.precision,
        device=str(training.group.device),
    )
    _require_whole_batches(config, backbone, training.group.count)
    greys = training.shared_images(backbone.preprocess)
    if config.train == "head":
        heads = backbone.head_parameters
        for name, parameter in backbone.network.named_parameters():
            parameter.requires_grad_(name in heads)
    if config.gradient_checkpointing:
        recompute_layers(backbone.network, backbone.name)
    return SupervisedStep(
        backbone=backbone,
        greys=greys,
        targets=training.targets,
        weight=class_weights(training.targets[rows], len(training.labels), config.class_weight),
        group=training.group,
        head_alone=config.train == "head",
        follows_batches=config.train == "all" and config.batch_norm == "batch",
        chunk_size=config.chunk_size,
        label_smoothing=config.label_smoothing,
        augmentation=AUGMENTATIONS[config.augmentation],
        seed=config.seed,
    )


def _optimizer(config: Config, step: SupervisedStep) -> torch.optim.Optimizer:
    groups = layer_groups(step.backbone, step.parameters, decay=config.layer_decay, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _require_whole_batches(config: Config, backbone: Backbone, processes: int) -> None:
    """Raise ConfigError where batch normalisation would see less than the batch."""
    if config.train == "head" or config.batch_norm == "frozen" or not backbone.running_statistics:
        return
    if config.chunk_size < config.batch_size or processes > 1:
        raise ConfigError(
            f"model '{config.model}' normalises by the statistics of its batch, which chunk_size = {config.chunk_size} "
            f"in {processes} process(es) would cut out of batch_size = {config.batch_size}; set chunk_size to "
            "the batch size in one process, or batch_norm = frozen"
        )


def _read_note(folder: Path) -> Mapping[str, Any]:
    """What stands beside the weights of a training; raises InputError where there are none."""
    note: Mapping[str, Any] = read_trained_note(folder / "model")["facts"]
    return note


def _score(training: FoldTraining[Config]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The test and the validation rows, by the weights that were kept."""
    folder, part = training.folder / "model", training.part
    backbone = load_trained(folder, precision=training.config.precision)
    if backbone.labels != training.labels:
        raise InputError(f"{folder}: was trained on {list(backbone.labels.names)}; train it again")
    greys, progress = training.images(backbone.preprocess), training.context.progress
    test = scores_of(backbone, greys, part.test, progress=progress)
    return test, scores_of(backbone, greys, part.val, progress=progress)


def load_classifier(config: Config, folder: Path, fold: int | None, labels: LabelSet) -> Backbone:
    """The network of the fold."""
    backbone = load_trained(fold_folder(folder, fold) / "model", precision=config.precision)
    require_classes(folder, backbone.labels, labels)
    return backbone
