"""What the steps of fine-tuning share: the images of a batch, and features for a validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Floats, Greys, Ints, Singles
from thoraclip.methods.gradcache import Tower, cached_backward
from thoraclip.methods.training.images import augmented
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.zeroshot import macro_f1
from thoraclip.models.heads import LinearHead, fit_lbfgs, log_loss
from thoraclip.models.lora import TunableEncoder

if TYPE_CHECKING:
    from thoraclip.labels import LabelSet
    from thoraclip.methods.tokens import TokenCache

__all__ = ["ImageStep", "validation_metrics"]

_SCORING_BATCH = 64
_PROBE_PENALTIES = (1.0, 0.1, 0.01)


def validation_metrics(scores: Floats, target: Ints) -> dict[str, float]:
    """Accuracy, macro F1 and log-loss of scores f64[V, C]."""
    predicted = scores.argmax(axis=1)
    return {
        "val_accuracy": float((target == predicted).mean()),
        "val_macro_f1": macro_f1(target, predicted, scores.shape[1]),
        "val_log_loss": log_loss(scores, target),
    }


@dataclass(frozen=True, kw_only=True)
class ImageStep:
    """A tuned vision tower, and the images that it learns from."""

    config: TrainingSettings
    loss: str  # a name in `LOSSES`
    tuned: TunableEncoder
    greys: Greys  # [N, S, S], the images of the manifest, on disk
    targets: Ints  # [N] classes, -1 where unknown
    group: ProcessGroup
    weight: Floats | None = None  # [N], of each image in the loss; `None` for equal ones
    sources: Ints | None = None  # [N], where they are balanced
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

    def _backward(self, towers: Sequence[Tower], loss: Callable[..., Tensor]) -> float:
        """Add the gradients of the batch's loss over all processes, which is returned; end the batch's dropout."""
        value = cached_backward(towers, loss, chunk_size=self.config.chunk_size, processes=self.group)
        self.group.combine(self.tuned.encoder_parameters.values(), self.loss_parameters.values())
        self.tuned.clear_masks()
        return float(value)

    def _features_of(self, batch: Batch) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Rows of the batch -> (pooled, projected) with gradient; a sample's dropout mask is its own."""
        encoder, tokens = self.tuned.encoder, self.tokens
        samples = torch.from_numpy(batch.samples).to(encoder.device)
        if tokens:

            def read(rows: Tensor) -> tuple[Tensor, Tensor]:
                return tokens.of_batch(batch.step, batch.rows[rows.numpy()], batch.samples[rows.numpy()])
        else:  # this process's images are read and augmented once
            own = self.group.own(len(batch.rows))[0].numpy()
            images = augmented(self.greys, batch, own, self.config, encoder.device)

            def read(rows: Tensor) -> tuple[Tensor, Tensor]:
                return encoder.image_features(encoder.expand(images[(rows - int(own[0])).to(encoder.device)]))

        def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
            self.tuned.vision_key.use(batch.step, samples[rows.to(encoder.device)])
            with encoder.autocast():
                return read(rows)

        return encode

    def _class_targets(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(i64[B] classes, f32[B] weights of the images in the loss, or `None` for equal ones)."""
        target = torch.from_numpy(self.targets[batch.rows]).to(self.tuned.encoder.device)
        return target, None if self.weight is None else torch.from_numpy(self.weight[batch.rows]).float().to(
            target.device
        )

    def fit_head(
        self, train: Ints, rows: Ints, labels: LabelSet, *, weighting: str = "none"
    ) -> tuple[LinearHead, dict[str, float]]:
        """A linear head on the pooled features of the training images, and its scores on the validation images.

        The penalty is the one of the highest macro F1 there; of equal ones the strongest.
        """
        (fitted, _), (scored, _) = self._encode(train), self._encode(rows)
        own = None if self.sources is None else self.sources[train]
        l2 = list(_PROBE_PENALTIES)
        heads = fit_lbfgs(fitted, self.targets[train], labels, l2=l2, weighting=weighting, sources=own)
        judged = [(head, validation_metrics(head.predict(scored), self.targets[rows])) for head in heads]
        return max(judged, key=lambda one: one[1]["val_macro_f1"])

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
