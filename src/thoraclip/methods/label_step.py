"""One step of fine-tuning a vision tower by the classes of its images alone: no text is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Ints
from thoraclip.methods.gradcache import Tower
from thoraclip.methods.image_step import ImageStep, validation_metrics
from thoraclip.methods.losses import LOSSES, Pairs
from thoraclip.methods.training.sampler import Batch
from thoraclip.models.heads import LinearHead
from thoraclip.models.lora import TunableEncoder

if TYPE_CHECKING:
    from thoraclip.labels import LabelSet

__all__ = ["LabelStep", "TrainedHead"]


@dataclass(frozen=True)
class TrainedHead:
    """A linear head on standardised pooled features, trained along with the tower; names as in `LinearHead`."""

    weight: nn.Parameter  # f32[C, D]
    bias: nn.Parameter  # f32[C]
    mean: Tensor  # f32[D], fixed from the first step on
    scale: Tensor  # f32[D]

    @classmethod
    def of(cls, tuned: TunableEncoder, classes: int) -> TrainedHead:
        """Of zeros, as wide as the tower's features."""
        side = tuned.encoder.preprocess.size
        width = tuned.encoder.encode_greys(np.zeros((1, side, side), dtype=np.uint8))[0].shape[1]
        zeros = partial(torch.zeros, device=tuned.encoder.device)
        return cls(nn.Parameter(zeros(classes, width)), nn.Parameter(zeros(classes)), zeros(width), zeros(width))

    @torch.no_grad()
    def copy(self, head: LinearHead) -> None:
        """Take over the values of a fitted head."""
        for name, tensor in vars(self).items():
            tensor.copy_(torch.from_numpy(np.array(getattr(head, name))))

    def logits(self, features: Tensor) -> Tensor:
        """f32[B, D] -> f32[B, C]."""
        return nn.functional.linear((features - self.mean) / self.scale, self.weight, self.bias)

    def fitted(self, labels: LabelSet) -> LinearHead:
        """As it is now."""
        return LinearHead(labels, **{name: t.detach().cpu().numpy().copy() for name, t in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class LabelStep(ImageStep):
    """Cross-entropy of a trained linear head, or a contrast of images; scored by a linear head on pooled features."""

    labels: LabelSet
    head: TrainedHead | None = None  # of a loss with one
    temperature: float = 0.1  # of a contrast; its inverse is the loss's scale

    @property
    def loss_parameters(self) -> Mapping[str, nn.Parameter]:
        """The head's weight and bias."""
        return {"head.weight": self.head.weight, "head.bias": self.head.bias} if self.head else {}

    @property
    def state(self) -> Mapping[str, Tensor]:
        """See `ImageStep`; the head's mean and scale are fixed at the first step."""
        return self.parameters | {f"head.{name}": t for name, t in (vars(self.head) if self.head else {}).items()}

    def begin(self, train: Ints, rows: Ints, weighting: str) -> None:
        """Start the head as a linear probe of the untouched encoder (Kumar et al. 2022, arXiv:2202.10054)."""
        if self.head:
            self.head.copy(self.fit_head(train, rows, self.labels, weighting=weighting)[0])

    def backward(self, batch: Batch) -> float:
        """See `ContrastiveStep.backward`."""
        encode = self._features_of(batch)

        def features(rows: Tensor) -> Tensor:
            pooled = encode(rows)[0].float()
            return pooled if self.head else nn.functional.normalize(pooled, dim=-1)

        def loss(pooled: Tensor) -> Tensor:
            image = self.head.logits(pooled) if self.head else pooled
            target, weight = self._class_targets(batch)
            scale = image.new_tensor(1 / self.temperature)
            return LOSSES[self.loss].value(Pairs(image, image, scale, image.new_zeros(()), target, weight=weight))

        return self._backward([Tower(len(batch.rows), features)], loss)

    def after_step(self) -> Mapping[str, float]:
        """Nothing more is measured."""
        return {}

    def scoring_head(self, train: Ints, rows: Ints, weighting: str) -> tuple[LinearHead, dict[str, float]]:
        """The head that scores, as it was trained or fitted now, and its scores on the validation images."""
        if self.head is None:
            return self.fit_head(train, rows, self.labels, weighting=weighting)
        head = self.head.fitted(self.labels)
        return head, validation_metrics(head.predict(self._encode(rows)[0]), self.targets[rows])
