"""`baseline`: an image classifier under cross-entropy, all of it or its head alone.

    step -> batch (rows) -> pictures, augmented once -> (mixed) -> network, chunk by chunk -> cross-entropy over the batch

Any image classifier that Transformers has (ResNet, ViT, ConvNeXt, ...), or the vision tower of a dual encoder with a
linear layer on its pooled output: `train = all` fine-tunes it, `train = head` is the linear classifier on a frozen tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ConfigError, InputError
from thoraclip.labels import LabelSet
from thoraclip.methods.encoders import ModelConfig
from thoraclip.methods.rounds import Result, Round, fit, run_rounds
from thoraclip.methods.running import Context, require_classes
from thoraclip.methods.supervised import Supervised, scores_of
from thoraclip.methods.training import TrainingSettings, require_known
from thoraclip.models.backbones import Backbone, load_backbone, load_trained, read_trained_note
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
    """The learning rate of each layer is this times that of the layer above it; 1 for the same in all, 0.75 suits ViT."""
    batch_norm: str = "batch"
    """Of networks that have it: batch (statistics of the batch, in one chunk and one process) or frozen (the checkpoint's)."""
    label_smoothing: float = 0.0
    """Share of every target that is spread over all classes."""
    mixup: float = 0.0
    """Alpha of the beta distribution that pairs of images are mixed by; 0 mixes none."""
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
        if self.mixup < 0:
            raise ConfigError(f"mixup = {self.mixup}: must not be negative")
        if self.gradient_checkpointing and self.train == "head":
            raise ConfigError("gradient_checkpointing = true: a frozen network has no backward pass; leave it out")


@dataclass(frozen=True)
class BaselineRound(Round):
    """The training of one network."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What stands beside the weights that were kept."""
        facts: Mapping[str, Any] = read_trained_note(self.folder / "model")["facts"]
        return facts

    def prepare(self) -> Supervised:
        """Network and pictures; what is wrong with a setting is found here."""
        config, rows = self.config, self.part.train
        backbone = load_backbone(
            config.model, self.labels, pretrained=config.pretrained, seed=config.seed, geometry=config.geometry,
            precision=config.precision, device=str(self.group.device),
        )  # fmt: skip
        self._require_whole_batches(backbone)
        weight = class_weights(self.targets[rows], len(self.labels), config.class_weight)
        greys = self.shared_pictures(backbone.preprocess)
        return Supervised(config, backbone, greys, self.targets, weight, self.part.val, self.group)

    def _require_whole_batches(self, backbone: Backbone) -> None:
        """Raise ConfigError where batch normalisation would see less than the batch."""
        config = self.config
        if config.train == "head" or config.batch_norm == "frozen" or not backbone.running_statistics:
            return
        if config.chunk_size < config.batch_size or self.group.count > 1:
            raise ConfigError(
                f"model '{config.model}' normalises by the statistics of its batch, which chunk_size = {config.chunk_size} "
                f"in {self.group.count} process(es) would cut out of batch_size = {config.batch_size}; set chunk_size to "
                "the batch size in one process, or batch_norm = frozen"
            )


def run(config: Config, context: Context) -> Result | None:
    """Train one network per fold (or one for the split), score its test images, pool.

    Returns:
        As every method; `None` in all but the first of several processes.
    """
    return run_rounds("baseline", config, context, BaselineRound, train=_train, score=_score)


def _train(one: BaselineRound) -> None:
    """From the checkpoint, if there is one, to `model/`, `metrics.jsonl` and `training.svg`."""
    sampler = one.sampler()
    trainee = one.prepare()
    done = fit(one, trainee, sampler)
    if one.group.is_main:
        if done.best:
            trainee.backbone.restore(done.best)
        one.keep_curve(done)
        trainee.backbone.save(one.folder / "model", one.note(done, done.kept_step) | {"model": one.config.model})


def _score(one: BaselineRound) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The test and the validation rows, by the weights that were kept."""
    backbone = load_trained(one.folder / "model", precision=one.config.precision)
    if backbone.labels != one.labels:
        raise InputError(f"{one.folder / 'model'}: was trained on {list(backbone.labels.names)}; train it again")
    greys, progress = one.pictures(backbone.preprocess), one.context.progress
    test = scores_of(backbone, greys, one.part.test, progress=progress)
    return test, scores_of(backbone, greys, one.part.val, progress=progress)


def load_classifier(config: Config, folder: Path, fold: int | None, labels: LabelSet) -> Backbone:
    """The network of the fold."""
    backbone = load_trained(fold_folder(folder, fold) / "model", precision=config.precision)
    require_classes(folder, backbone.labels, labels)
    return backbone
