"""Which images each batch has, and the learning rate of each step: pure functions of the seed and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Ints
from thoraclip.errors import ConfigError

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
            as many.
        seed: of the order.

    Raises:
        ConfigError: the batch is larger than the training set.
    """

    def __init__(
        self, rows: Ints, targets: Ints, *, total: int, batch_size: int, sampling: str = "shuffle", seed: int = 0
    ) -> None:
        self._rows, self._targets, self._total, self._seed = rows, targets, total, seed
        self._balanced, self._batch = sampling == "balanced", batch_size
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
        if not self._balanced:
            return self._rows[rng.permutation(len(self._rows))]
        groups = [self._rows[self._targets == target] for target in np.unique(self._targets)]
        most = max(len(group) for group in groups)
        drawn = []
        for group in groups:
            for again in range(-(-most // len(group))):
                mixed = group[rng.permutation(len(group))][: most - again * len(group)]
                drawn.append(mixed + again * self._total)
        return np.concatenate(drawn)[rng.permutation(most * len(groups))]


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
