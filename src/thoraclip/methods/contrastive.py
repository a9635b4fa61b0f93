"""One contrastive step over a batch of any size: its texts, its loss, and the validation of the encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Floats, Ints
from thoraclip.methods import losses
from thoraclip.methods.gradcache import Tower
from thoraclip.methods.image_step import ImageStep
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.zeroshot import class_vectors, macro_f1
from thoraclip.models.dual_encoder import DualEncoder

__all__ = ["CaptionTexts", "ContrastiveStep", "PromptTexts"]


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
    classes: Ints  # [U], the class of each prompt

    @classmethod
    def of(cls, prompts: Sequence[Sequence[str]]) -> PromptTexts:
        """From the prompts of each class."""
        classes = np.repeat(np.arange(len(prompts)), [len(p) for p in prompts])
        return cls(tuple(text for p in prompts for text in p), classes)


@dataclass(frozen=True, kw_only=True)
class ContrastiveStep(ImageStep):
    """A contrast of images with texts."""

    logit_scale_max: float  # upper bound of a trained logit scale
    texts: CaptionTexts | PromptTexts  # what stands beside the images
    _kept: dict[tuple[tuple[str, ...], ...], Floats] = field(default_factory=dict, init=False)  # class vectors

    @property
    def encoder(self) -> DualEncoder:
        """Of images and texts."""
        assert isinstance(self.tuned.encoder, DualEncoder), "a loss on texts needs one"
        return self.tuned.encoder

    @cached_property
    def text_tokens(self) -> dict[str, Tensor]:
        """Tokens [U, L] of all texts, padded to one length, whatever chunk they will stand in."""
        return self.encoder.tokenize(self.texts.texts)

    @cached_property
    def _frozen_texts(self) -> Tensor | None:
        """f32[U, P], unit vectors of all texts, encoded once; `None` where the text side is trained."""
        if self.tuned.trains_text:
            return None
        with torch.no_grad():
            numbers = torch.arange(len(self.texts.texts), device=self.encoder.device)
            return torch.cat([self._encode_texts(some) for some in torch.split(numbers, self.config.chunk_size)])

    def _encode_texts(self, numbers: Tensor) -> Tensor:
        """Numbers of texts -> unit vectors."""
        with self.encoder.autocast():
            projected = self.encoder.text_features({name: value[numbers] for name, value in self.text_tokens.items()})
        return nn.functional.normalize(projected.float(), dim=-1)

    def backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss; over all processes they are those of one step on the whole batch.

        Returns:
            The loss; where it is not finite, there are no gradients.
        """
        numbers, inverse = self.texts_of(batch)
        vision = Tower(len(batch.rows), self._images_of(batch))
        text = Tower(len(numbers), self._texts_of(batch, numbers))
        return self._backward((vision, text), self._loss_of(batch, inverse))

    def after_step(self) -> Mapping[str, float]:
        """The logit scale, which never exceeds its bound."""
        return {"logit_scale": self.tuned.clamp_scale(self.logit_scale_max)}

    def texts_of(self, batch: Batch) -> tuple[Ints, Ints]:
        """(i64[U] different texts of the batch, i64[B] which of them, or of the classes, each image has)."""
        if isinstance(self.texts, PromptTexts):
            return np.arange(len(self.texts.texts)), self.targets[batch.rows]
        numbers = np.array([self.texts.of_row[row] for row in batch.rows.tolist()], dtype=np.int64)
        unique, inverse = np.unique(numbers, return_inverse=True)
        return unique, inverse

    def _images_of(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Rows of the batch -> unit vectors."""
        features = self._features_of(batch)
        return lambda rows: nn.functional.normalize(features(rows)[1].float(), dim=-1)

    def _texts_of(self, batch: Batch, numbers: Ints) -> Callable[[Tensor], Tensor]:
        """Rows of `numbers` -> unit vectors; a text's dropout mask is its own, wherever in the batch it stands."""
        key = torch.from_numpy(numbers).to(self.encoder.device)

        def encode(rows: Tensor) -> Tensor:
            chosen = key[rows.to(key.device)]
            if self._frozen_texts is not None:
                return self._frozen_texts[chosen]
            self.tuned.text_key.use(batch.step, chosen)
            return self._encode_texts(chosen)

        return encode

    def _loss_of(self, batch: Batch, inverse: Ints) -> Callable[[Tensor, Tensor], Tensor]:
        device, chosen = self.encoder.device, losses.LOSSES[self.loss]
        target, weight = self._class_targets(batch)
        which = torch.from_numpy(inverse).to(device)

        def loss(image: Tensor, text: Tensor) -> Tensor:
            classes = torch.from_numpy(self.texts.classes).to(device) if isinstance(self.texts, PromptTexts) else None
            if not chosen.on_prompts:
                text = (text if classes is None else losses.class_means(text, classes))[which]
            scale, bias = self.tuned.log_scale.exp(), self.tuned.bias
            return chosen.value(losses.Pairs(image, text, scale, bias, target, classes, weight))

        return loss

    def _class_vectors(self, prompts: tuple[tuple[str, ...], ...]) -> Floats:
        """f64[C, P] of the prompts of each class, encoded once where the text side is not trained."""
        if self.tuned.trains_text or prompts not in self._kept:
            self._kept[prompts] = class_vectors([self.encoder.encode_texts(p).astype(np.float64) for p in prompts])
        return self._kept[prompts]

    def validate(self, rows: Ints, prompts: Sequence[Sequence[str]]) -> dict[str, float]:
        """Zero-shot accuracy, macro F1 and mean cosine on some images, nothing dropped."""
        _, projected = self._encode(rows)
        vectors = self._class_vectors(tuple(map(tuple, prompts)))
        cosine = projected.astype(np.float64) @ vectors.T
        predicted, target = cosine.argmax(axis=1), self.targets[rows]
        return {
            "val_accuracy": float((target == predicted).mean()),
            "val_macro_f1": macro_f1(target, predicted, len(prompts)),
            "val_mean_cosine": float(cosine.mean()),
        }
