"""Which text stands beside an image in a training step: its caption, or one of its class's prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thoraclip.methods.training import Batch

__all__ = ["CaptionTexts", "PairTexts", "PromptTexts"]

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CaptionTexts:
    """Every image has one text.

    Args:
        texts: U different texts, sorted.
        of_row: row of the manifest -> number of its text.
    """

    texts: tuple[str, ...]
    of_row: Mapping[int, int]

    @classmethod
    def of(cls, rows: Sequence[int], captions: Sequence[str]) -> CaptionTexts:
        """From the caption of each row."""
        texts = tuple(sorted(set(captions)))
        number = {text: n for n, text in enumerate(texts)}
        return cls(texts, {row: number[caption] for row, caption in zip(rows, captions, strict=True)})

    def draw(self, batch: Batch) -> Numbers:
        """i64[B]: the number of each image's text."""
        return np.array([self.of_row[row] for row in batch.rows.tolist()], dtype=np.int64)


@dataclass(frozen=True)
class PromptTexts:
    """Every image gets one of its class's prompts, another one in every step.

    Args:
        texts: the prompts of all classes, one class after the other.
        classes: i64[U], the class of each prompt.
        targets: i64[N], the class of every row of the manifest.
        seed: of the draw, a function of (seed, step, sample).
    """

    texts: tuple[str, ...]
    classes: Numbers
    targets: Numbers
    seed: int

    @classmethod
    def of(cls, prompts: Sequence[Sequence[str]], targets: Numbers, seed: int) -> PromptTexts:
        """From the prompts of each class."""
        classes = np.repeat(np.arange(len(prompts)), [len(p) for p in prompts])
        return cls(tuple(text for p in prompts for text in p), classes, targets, seed)

    def draw(self, batch: Batch) -> Numbers:
        """i64[B]: the number of each image's text."""
        numbers = []
        for row, sample in zip(batch.rows.tolist(), batch.samples.tolist(), strict=True):
            own = np.flatnonzero(self.classes == self.targets[row])
            rng = np.random.Philox(key=[self.seed, batch.step], counter=[0, 0, 2, sample])
            numbers.append(own[int(rng.random_raw()) % len(own)])
        return np.array(numbers, dtype=np.int64)


PairTexts = CaptionTexts | PromptTexts
