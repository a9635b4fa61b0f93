"""`baseline`: an image classifier under cross-entropy, all of it or its head alone.

    batch (rows) -> images, augmented once -> (mixed) -> network, chunk by chunk -> cross-entropy over the batch

Any image classifier that Transformers has (ResNet, ViT, ConvNeXt, ...), or the vision tower of a dual encoder with a
linear layer on its pooled output: `train = all` fine-tunes it, `train = head` is a linear classifier on a frozen
tower. `run` trains one network per fold (`_train`; the loop is `Steps.run`) and scores its test images with the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Floats, Greys, Ints
from thoraclip.errors import ConfigError, InputError
from thoraclip.labels import LabelSet
from thoraclip.methods.encoders import ModelConfig
from thoraclip.methods.image_step import validation_metrics
from thoraclip.methods.network_scores import compute_of, scores_of
from thoraclip.methods.running import MethodOutput, RunContext, require_classes
from thoraclip.methods.training.folds import FoldTraining, train_folds
from thoraclip.methods.training.images import augmented
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.training.steps import Steps
from thoraclip.models.backbones import Backbone, load_backbone, load_trained, read_trained_note
from thoraclip.models.network import recompute_layers
from thoraclip.models.weighting import class_weights
from thoraclip.ranges import OneOf, Range, Weight
from thoraclip.runs import fold_folder

__all__ = ["Config", "SupervisedStep", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, TrainingSettings):
    """What one baseline needs."""

    model: str = "tiny-clip"
    """Hub id, local folder, or tiny-clip: an image classifier that Transformers has, such as microsoft/resnet-18 or
    google/vit-base-patch16-224, or a dual encoder, whose vision tower is taken."""
    pretrained: bool = True
    """Begin from the checkpoint's weights; false draws all of them anew."""
    train: Annotated[str, OneOf(("all", "head"))] = "all"
    """all (end to end) or head (a linear classifier on frozen features)."""
    layer_decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    """The learning rate of each layer is this times that of the layer above it; 1 for the same in all, 0.75 suits
    ViT."""
    batch_norm: Annotated[str, OneOf(("batch", "frozen"))] = "batch"
    """Of networks that have it: batch (statistics of the batch, in one chunk and one process) or frozen (the
    checkpoint's)."""
    label_smoothing: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Share of every target that is spread over all classes."""
    weight_decay: Weight = 0.05
    """AdamW's, on matrices and filters; biases and norms have none."""
    select: Annotated[str, OneOf(("macro_f1", "log_loss", "last"))] = "macro_f1"
    """Which weights are kept as the best: by validation macro_f1 or log_loss; or the last ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def validate() -> None:
        values = steps.log_validation(step.validate(training.part.val))
        criteria = {"macro_f1": values["val_macro_f1"], "log_loss": -values["val_log_loss"]}
        steps.keep_best(criteria.get(config.select))

    progress = steps.run(step, validate)
    if training.group.is_main:
        steps.restore_best()
        training.write_curve(progress)
        note = training.note(progress, progress.kept_step) | {"model": config.model}
        step.backbone.save(training.folder / "model", note)


def _prepare(training: FoldTraining[Config]) -> SupervisedStep:
    """Network and images; a wrong setting is refused here. What is not trained has no gradient."""
    config, rows = training.config, training.part.train
    backbone = load_backbone(
        config.model,
        training.labels,
        pretrained=config.pretrained,
        seed=config.seed,
        geometry=config.geometry,
        remedy=config.remedy,
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
    shape = len(training.targets), len(training.labels)
    if config.class_weight == "source":
        return SupervisedStep(training, backbone, greys, np.broadcast_to(training.weights()[:, None], shape))
    weight = class_weights(training.targets[rows], len(training.labels), config.class_weight)
    return SupervisedStep(training, backbone, greys, np.broadcast_to(weight, shape))


def _optimizer(config: Config, step: SupervisedStep) -> torch.optim.Optimizer:
    """AdamW, in which the share of the learning rate falls with the distance from the head.

    share = decay^(top - depth), as in ELECTRA (Clark et al. 2020, arXiv:2003.10555, appendix A) and BEiT (Bao et al.
    2021, arXiv:2106.08254); depth as in `Backbone.depths`. Only tensors of two dimensions or more have weight decay.
    """
    depths = step.backbone.depths(list(step.parameters))
    top = max(depths)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for depth, parameter in zip(depths, step.parameters.values(), strict=True):
        decays = parameter.dim() > 1
        share, decay = config.layer_decay ** (top - depth), config.weight_decay if decays else 0.0
        group = groups.setdefault((depth, decays), {"params": [], "share": share, "weight_decay": decay})
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=config.learning_rate)


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
    return read_trained_note(folder / "model")[2]


def _score(training: FoldTraining[Config]) -> tuple[Floats, Floats]:
    """The test and the validation rows, by the weights that were kept."""
    folder, part = training.folder / "model", training.part
    backbone = load_trained(folder, precision=training.config.precision)
    if backbone.labels != training.labels:
        raise InputError(f"{folder}: was trained on {list(backbone.labels.names)}; train it again")
    greys, context = training.images(backbone.preprocess), training.context
    rows, runtime = np.concatenate([part.test, part.val]), training.config.runtime
    compute = compute_of(backbone, greys, rows, runtime=runtime, announce=context.log)
    given: dict[str, Any] = {"progress": context.progress, "compute": compute}
    return scores_of(backbone, greys, part.test, **given), scores_of(backbone, greys, part.val, **given)


def load_classifier(config: Config, folder: Path, fold: int | None, labels: LabelSet) -> Backbone:
    """The network of the fold."""
    backbone = load_trained(fold_folder(folder, fold) / "model", precision=config.precision)
    require_classes(folder, backbone.labels, labels)
    return backbone


@dataclass(frozen=True)
class SupervisedStep:
    """A classifier under (weighted, smoothed) cross-entropy; what has no gradient is not trained."""

    training: FoldTraining[Config]
    backbone: Backbone
    greys: Greys  # [N, S, S], the images of the manifest, on disk
    weight: Floats  # [N, C], of each image in the loss, and of each class that smoothing gives it a share of

    @property
    def follows_batches(self) -> bool:
        """True where batch normalisation uses, and keeps, the statistics of each batch."""
        return self.training.config.train == "all" and self.training.config.batch_norm == "batch"

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Those that are trained, by name."""
        return {n: p for n, p in self.backbone.network.named_parameters() if p.requires_grad}

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Every tensor that a step changes: the parameters, and the statistics of batch normalisation."""
        return {**self.parameters, **(self.backbone.running_statistics if self.follows_batches else {})}

    def backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss; over the chunks and processes they are those of one pass."""
        config, group, device = self.training.config, self.training.group, self.backbone.device
        weight = torch.from_numpy(self.weight[batch.rows]).float().to(device)
        self._train_mode()
        target = self._soft_targets(batch.rows)
        total = (target * weight).sum()
        own, real = group.own(len(batch.rows))
        value = 0.0
        for chunk in torch.split(own[:real], config.chunk_size) if real else ():
            at = chunk.numpy()
            pixels = self._pixels(batch, at)
            with _stream_of(config.seed, batch.step, int(at[0]), device=device):
                likelihood = self.backbone.logits(pixels).log_softmax(dim=-1)
            loss = -(target[chunk.to(device)] * weight[chunk.to(device)] * likelihood).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        group.combine(self.parameters.values(), ())
        return group.total(value)

    def after_step(self) -> Mapping[str, float]:
        """Nothing more is measured."""
        return {}

    def validate(self, rows: Ints) -> dict[str, float]:
        """Accuracy, macro F1 and log-loss on the validation images, each process scoring its share."""
        group = self.training.group
        own, _ = group.own(len(rows))
        mine = torch.from_numpy(scores_of(self.backbone, self.greys, rows[own.numpy()])).float()
        scores = group.gather(mine.to(self.backbone.device), len(rows)).cpu().double().numpy()
        return validation_metrics(scores, self.training.targets[rows])

    def _train_mode(self) -> None:
        """Dropout on and, unless frozen, batch normalisation by the batch; a frozen network stays as it scores."""
        network = self.backbone.network
        network.train(self.training.config.train != "head")
        if not self.follows_batches:
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _pixels(self, batch: Batch, at: Ints) -> Tensor:
        """f32[b, 3, S, S] of some places of the batch, augmented by their samples."""
        images = augmented(self.greys, batch, at, self.training.config, self.backbone.device)
        return self.backbone.expand(images)

    def _soft_targets(self, rows: Ints) -> Tensor:
        """f32[B, C]: 1 - e at the class and e / C everywhere (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
        classes, smooth = len(self.backbone.labels), self.training.config.label_smoothing
        hard = nn.functional.one_hot(torch.from_numpy(self.training.targets[rows]), classes).float()
        return (hard * (1 - smooth) + smooth / classes).to(self.backbone.device)


@contextmanager
def _stream_of(*numbers: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random stream as a function of some numbers, for a network's own dropout; given back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield
