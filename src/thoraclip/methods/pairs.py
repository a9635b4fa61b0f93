"""Which text stands beside an image in a training step: its caption, or its class's prompts."""

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
    """The images of a class share one vector, the mean of its prompts' as in scoring.

    Not one prompt at random: then the loss is first lowered by making all prompts alike, the classes' included, and stays
    there.

    Args:
        texts: U prompts, one class after the other.
        classes: i64[U], the class of each prompt.
    """

    texts: tuple[str, ...]
    classes: Numbers

    @classmethod
    def of(cls, prompts: Sequence[Sequence[str]]) -> PromptTexts:
        """From the prompts of each class."""
        classes = np.repeat(np.arange(len(prompts)), [len(p) for p in prompts])
        return cls(tuple(text for p in prompts for text in p), classes)


PairTexts = CaptionTexts | PromptTexts
