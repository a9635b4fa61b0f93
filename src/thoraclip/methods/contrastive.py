"""One contrastive step over a batch of any size: its texts, its loss, and the validation of the encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thoraclip.methods import losses
from thoraclip.methods.gradcache import Tower, cached_backward
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch, Rows
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.zeroshot import class_vectors, macro_f1
from thoraclip.models.augment import AUGMENTATIONS, augment
from thoraclip.models.heads import fit_lbfgs
from thoraclip.models.lora import TunableEncoder

if TYPE_CHECKING:
    from thoraclip.labels import LabelSet

__all__ = ["CaptionTexts", "ContrastiveStep", "PromptTexts"]

_SCORING_BATCH = 64
_PROBE_PENALTIES = (1.0, 0.1, 0.01)


@dataclass(frozen=True)
class CaptionTexts:
    """Every image has one text."""

    texts: tuple[str, ...]  # U different ones, sorted
    of_row: Mapping[int, int]  # row of the manifest -> number of its text

    @classmethod
    def of(cls, rows: Sequence[int], captions: Sequence[str]) -> CaptionTexts:
        """From the caption of each row."""
        texts = tuple(sorted(set(captions)))
        number = {text: n for n, text in enumerate(texts)}
        return cls(texts, {row: number[caption] for row, caption in zip(rows, captions, strict=True)})


@dataclass(frozen=True)
class PromptTexts:
    """The images of a class share one vector, the mean of its prompts' as in scoring.

    Not one prompt at random: the loss would first make all prompts alike, those of different classes included.
    """

    texts: tuple[str, ...]  # U prompts, one class after the other
    classes: Rows  # [U], the class of each prompt

    @classmethod
    def of(cls, prompts: Sequence[Sequence[str]]) -> PromptTexts:
        """From the prompts of each class."""
        classes = np.repeat(np.arange(len(prompts)), [len(p) for p in prompts])
        return cls(tuple(text for p in prompts for text in p), classes)


@dataclass(frozen=True)
class ContrastiveStep:
    """Everything that a step needs."""

    config: TrainingSettings
    loss: str  # a name in `LOSSES`
    logit_scale_max: float  # upper bound of a trained logit scale
    tuned: TunableEncoder
    greys: npt.NDArray[np.uint8]  # [N, S, S], the images of the manifest, on disk
    targets: Rows  # [N] classes, -1 where unknown
    texts: CaptionTexts | PromptTexts  # what stands beside the images
    group: ProcessGroup
    weight: npt.NDArray[np.float64] | None  # [C], of each class in the loss; `None` for equal ones

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Those that are trained, by name."""
        return self.tuned.parameters

    @cached_property
    def tokens(self) -> dict[str, Tensor]:
        """Tokens [U, L] of all texts, padded to one length, whatever chunk they will stand in."""
        return self.tuned.encoder.tokenize(self.texts.texts)

    def backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss; over all processes they are those of one step on the whole batch.

        Returns:
            The loss; where it is not finite, there are no gradients.
        """
        numbers, inverse = self.texts_of(batch)
        vision = Tower(len(batch.rows), self._images_of(batch))
        text = Tower(len(numbers), self._texts_of(batch, numbers))
        value = cached_backward(
            (vision, text), self._loss_of(batch, inverse), chunk_size=self.config.chunk_size, processes=self.group
        )
        self.group.combine(self.tuned.encoder_parameters.values(), self.tuned.loss_parameters.values())
        self.tuned.clear_masks()
        return float(value)

    def after_step(self) -> Mapping[str, float]:
        """The logit scale, which never exceeds its bound."""
        return {"logit_scale": self.tuned.clamp_scale(self.logit_scale_max)}

    def texts_of(self, batch: Batch) -> tuple[Rows, Rows]:
        """(i64[U] different texts of the batch, i64[B] which of them, or of the classes, each image has)."""
        if isinstance(self.texts, PromptTexts):
            return np.arange(len(self.texts.texts)), self.targets[batch.rows]
        numbers = np.array([self.texts.of_row[row] for row in batch.rows.tolist()], dtype=np.int64)
        unique, inverse = np.unique(numbers, return_inverse=True)
        return unique, inverse

    def _images_of(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Rows of the batch -> unit vectors; this process's images are read and augmented once."""
        encoder = self.tuned.encoder
        own, _ = self.group.own(len(batch.rows))
        images = torch.from_numpy(self.greys[batch.rows[own.numpy()]]).to(encoder.device)
        if augmentation := AUGMENTATIONS[self.config.augmentation]:
            samples = batch.samples[own.numpy()].tolist()
            images = augment(images, augmentation, seed=self.config.seed, step=batch.step, samples=samples)
        samples = torch.from_numpy(batch.samples).to(encoder.device)
        first = int(own[0])

        def encode(rows: Tensor) -> Tensor:
            self.tuned.vision_key.use(batch.step, samples[rows.to(encoder.device)])
            with encoder.autocast():
                _, projected = encoder.image_features(encoder.expand(images[(rows - first).to(encoder.device)]))
            return nn.functional.normalize(projected.float(), dim=-1)

        return encode

    def _texts_of(self, batch: Batch, numbers: Rows) -> Callable[[Tensor], Tensor]:
        """Rows of `numbers` -> unit vectors; a text's dropout mask is its own, wherever in the batch it stands."""
        encoder, key = self.tuned.encoder, torch.from_numpy(numbers).to(self.tuned.encoder.device)

        def encode(rows: Tensor) -> Tensor:
            chosen = key[rows.to(encoder.device)]
            self.tuned.text_key.use(batch.step, chosen)
            with encoder.autocast():
                projected = encoder.text_features({name: value[chosen] for name, value in self.tokens.items()})
            return nn.functional.normalize(projected.float(), dim=-1)

        return encode

    def _loss_of(self, batch: Batch, inverse: Rows) -> Callable[[Tensor, Tensor], Tensor]:
        device, chosen = self.tuned.encoder.device, losses.LOSSES[self.loss]
        target = torch.from_numpy(self.targets[batch.rows]).to(device)
        weight = None if self.weight is None else torch.from_numpy(self.weight).float().to(device)[target]
        which = torch.from_numpy(inverse).to(device)

        def loss(image: Tensor, text: Tensor) -> Tensor:
            classes = torch.from_numpy(self.texts.classes).to(device) if isinstance(self.texts, PromptTexts) else None
            if not chosen.on_prompts:
                text = (text if classes is None else losses.class_means(text, classes))[which]
            scale, bias = self.tuned.log_scale.exp(), self.tuned.bias
            return chosen.value(losses.Pairs(image, text, scale, bias, target, classes, weight))

        return loss

    def validate(self, rows: Rows, prompts: Sequence[Sequence[str]]) -> dict[str, float]:
        """Zero-shot accuracy, macro F1 and mean cosine on some images, nothing dropped."""
        _, projected = self._encode(rows)
        vectors = class_vectors([self.tuned.encoder.encode_texts(p).astype(np.float64) for p in prompts])
        cosine = projected.astype(np.float64) @ vectors.T
        predicted, target = cosine.argmax(axis=1), self.targets[rows]
        return {
            "val_accuracy": float((target == predicted).mean()),
            "val_macro_f1": macro_f1(target, predicted, len(prompts)),
            "val_mean_cosine": float(cosine.mean()),
        }

    def validate_probe(self, train: Rows, rows: Rows, labels: LabelSet) -> dict[str, float]:
        """Macro F1 of a linear probe that is fitted on the training images, the best of a few penalties."""
        (fitted, _), (scored, _) = self._encode(train), self._encode(rows)
        heads = fit_lbfgs(fitted, self.targets[train], labels, l2=list(_PROBE_PENALTIES), weighting="none")
        scores = [macro_f1(self.targets[rows], h.predict(scored).argmax(axis=1), len(labels)) for h in heads]
        return {"val_probe_macro_f1": max(scores)}

    def _encode(self, rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(pooled, projected) of some images, each process encoding its share."""
        own, _ = self.group.own(len(rows))
        mine = rows[own.numpy()]
        batches = [mine[at : at + _SCORING_BATCH] for at in range(0, len(mine), _SCORING_BATCH)]
        made = [self.tuned.encoder.encode_greys(np.array(self.greys[b])) for b in batches]
        device = self.tuned.encoder.device
        pooled, projected = (
            self.group.gather(torch.from_numpy(np.concatenate(part)).to(device), len(rows)).cpu().numpy()
            for part in zip(*made, strict=True)
        )
        return pooled, projected
