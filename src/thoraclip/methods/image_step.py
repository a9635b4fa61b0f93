"""What the steps of fine-tuning share: the images of a batch, and features for a validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Floats, Greys, Ints, Singles
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.zeroshot import macro_f1
from thoraclip.models.augment import AUGMENTATIONS, augment
from thoraclip.models.heads import LinearHead, fit_lbfgs, log_loss
from thoraclip.models.lora import TunableEncoder

if TYPE_CHECKING:
    from thoraclip.labels import LabelSet
    from thoraclip.methods.tokens import TokenCache

__all__ = ["ImageStep"]

_SCORING_BATCH = 64
_PROBE_PENALTIES = (1.0, 0.1, 0.01)


@dataclass(frozen=True, kw_only=True)
class ImageStep:
    """A tuned vision tower, and the images that it learns from."""

    config: TrainingSettings
    loss: str  # a name in `LOSSES`
    tuned: TunableEncoder
    greys: Greys  # [N, S, S], the images of the manifest, on disk
    targets: Ints  # [N] classes, -1 where unknown
    group: ProcessGroup
    weight: Floats | None = None  # [C], of each class in the loss; `None` for equal ones
    tokens: TokenCache | None = None  # behind the frozen first blocks; `None` where the images are read

    @property
    def loss_parameters(self) -> Mapping[str, nn.Parameter]:
        """Trained tensors beside the encoder's, by name."""
        return self.tuned.loss_parameters

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that are trained, by name."""
        return {**self.tuned.encoder_parameters, **self.loss_parameters}

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Every tensor that a checkpoint needs."""
        return self.parameters

    def _end_batch(self) -> None:
        """Sum the gradients over the processes, and end the batch's dropout."""
        self.group.combine(self.tuned.encoder_parameters.values(), self.loss_parameters.values())
        self.tuned.clear_masks()

    def _features_of(self, batch: Batch) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Rows of the batch -> (pooled, projected) with gradient; a sample's dropout mask is its own."""
        encoder, read = self.tuned.encoder, self._read_tokens(batch) if self.tokens else self._read_images(batch)
        samples = torch.from_numpy(batch.samples).to(encoder.device)

        def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
            self.tuned.vision_key.use(batch.step, samples[rows.to(encoder.device)])
            with encoder.autocast():
                return read(rows)

        return encode

    def _read_tokens(self, batch: Batch) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def read(rows: Tensor) -> tuple[Tensor, Tensor]:
            assert self.tokens is not None, "asked before"
            return self.tokens.of_batch(batch.step, batch.rows[rows.numpy()], batch.samples[rows.numpy()])

        return read

    def _read_images(self, batch: Batch) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """This process's images are read and augmented once."""
        encoder = self.tuned.encoder
        own, _ = self.group.own(len(batch.rows))
        images = torch.from_numpy(self.greys[batch.rows[own.numpy()]]).to(encoder.device)
        if augmentation := AUGMENTATIONS[self.config.augmentation]:
            samples = batch.samples[own.numpy()].tolist()
            images = augment(images, augmentation, seed=self.config.seed, step=batch.step, samples=samples)
        first = int(own[0])
        return lambda rows: encoder.image_features(encoder.expand(images[(rows - first).to(encoder.device)]))

    def _class_targets(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(i64[B] classes, f32[B] weights of the images in the loss, or `None` for equal ones)."""
        target = torch.from_numpy(self.targets[batch.rows]).to(self.tuned.encoder.device)
        return target, None if self.weight is None else torch.from_numpy(self.weight).float().to(target.device)[target]

    def fit_head(
        self, train: Ints, rows: Ints, labels: LabelSet, *, weighting: str = "none"
    ) -> tuple[LinearHead, dict[str, float]]:
        """A linear head on the pooled features of the training images, and its scores on the validation images.

        The penalty is the one of the highest macro F1 there; of equal ones the strongest.
        """
        (fitted, _), (scored, _) = self._encode(train), self._encode(rows)
        heads = fit_lbfgs(fitted, self.targets[train], labels, l2=list(_PROBE_PENALTIES), weighting=weighting)
        found = [(head, self.judge_head(head, scored, rows)) for head in heads]
        return max(found, key=lambda one: one[1]["val_macro_f1"])

    def judge_head(self, head: LinearHead, features: Singles, rows: Ints) -> dict[str, float]:
        """Accuracy, macro F1 and log-loss of a head on the features of some images."""
        scores, target = head.predict(features), self.targets[rows]
        predicted = scores.argmax(axis=1)
        return {
            "val_accuracy": float((target == predicted).mean()),
            "val_macro_f1": macro_f1(target, predicted, scores.shape[1]),
            "val_log_loss": log_loss(scores, target),
        }

    def _encode(self, rows: Ints) -> tuple[Singles, Singles]:
        """(pooled, projected) of some images, each process encoding its share."""
        own, _ = self.group.own(len(rows))
        mine = rows[own.numpy()]
        batches = [mine[at : at + _SCORING_BATCH] for at in range(0, len(mine), _SCORING_BATCH)]
        encoder, tokens = self.tuned.encoder, self.tokens
        made = [tokens.encode(b) if tokens else encoder.encode_greys(np.array(self.greys[b])) for b in batches]
        pooled, projected = (
            self.group.gather(torch.from_numpy(np.concatenate(part)).to(encoder.device), len(rows)).cpu().numpy()
            for part in zip(*made, strict=True)
        )
        return pooled, projected
