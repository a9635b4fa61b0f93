"""Which images each batch has, and the learning rate of each step: pure functions of the seed and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Ints
from thoraclip.errors import ConfigError
from thoraclip.models.weighting import source_weights

__all__ = ["Batch", "Sampler", "learning_rate_at"]


@dataclass(frozen=True)
class Batch:
    """The images of one optimiser's step."""

    step: int  # its number, from 0
    rows: Ints  # i64[B] rows of the manifest
    samples: Ints  # i64[B], a number for each draw: the row, and another one where a row is drawn again within an epoch


class Sampler:
    """Whole batches in an order that is new in every epoch; what is left over at an epoch's end is left out.

    Args:
        rows: i64[N], the training rows of a manifest of `total` rows.
        targets: i64[N], their classes.
        total: rows of the manifest.
        batch_size: B.
        sampling: `shuffle`: every image once an epoch; `balanced`: images of rarer classes again until all classes have
            as many; `source`: as many draws as there are images, of each class as many, and of each source of a class,
            as far as `weighting.source_weights` lets them: no image more than ten times on average.
        seed: of the order.
        sources: i64[N], the source of each image, for `source`.

    Raises:
        ConfigError: the batch is larger than the training set.
    """

    def __init__(
        self,
        rows: Ints,
        targets: Ints,
        *,
        total: int,
        batch_size: int,
        sampling: str = "shuffle",
        seed: int = 0,
        sources: Ints | None = None,
    ) -> None:
        self._rows, self._total, self._seed, self._batch = rows, total, seed, batch_size
        self._groups = _groups(rows, targets, sampling, sources)
        self._epoch: tuple[int, Ints] = (-1, rows)
        draws = len(self._order(0))
        if batch_size > draws:
            raise ConfigError(
                f"batch_size = {batch_size}: larger than the training set, {draws} images; take a smaller one"
            )
        self.steps_per_epoch = draws // batch_size

    def batch(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        drawn = self._epoch[1][place * self._batch : (place + 1) * self._batch]
        return Batch(step, drawn % self._total, drawn)

    def _order(self, epoch: int) -> Ints:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        if not self._groups:
            return self._rows[rng.permutation(len(self._rows))]
        drawn = []
        for group, draws in self._groups:
            for again in range(-(-draws // len(group))):
                mixed = group[rng.permutation(len(group))][: draws - again * len(group)]
                drawn.append(mixed + again * self._total)
        return np.concatenate(drawn)[rng.permutation(sum(draws for _, draws in self._groups))]


def _groups(rows: Ints, targets: Ints, sampling: str, sources: Ints | None) -> list[tuple[Ints, int]]:
    """(rows of a group, how many are drawn in an epoch), where the images are not drawn alike."""
    if sampling == "balanced":
        groups = [rows[targets == target] for target in np.unique(targets)]
        return [(group, max(map(len, groups))) for group in groups]
    if sampling != "source":
        return []
    if sources is None:
        raise ValueError("sampling = 'source' needs the source of each image")
    weights, pairs = source_weights(targets, sources), np.stack([targets, sources])
    numbers = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()
    totals = np.bincount(numbers, weights)
    draws = np.floor(totals + 1e-9).astype(np.int64)
    rest = np.argsort(draws - totals, kind="stable")[: len(rows) - draws.sum()]  # the largest remainders
    draws[rest] += 1
    return [(rows[numbers == number], int(count)) for number, count in enumerate(draws)]


def learning_rate_at(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).

    Args:
        step: 0..steps-1.
        steps: of the whole training.
        warmup_steps: steps of the warm-up; -1 for a tenth of all.
        peak: the highest rate.
    """
    warmup = max(1, steps // 10) if warmup_steps < 0 else warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
