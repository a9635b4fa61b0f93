"""Dropout whose mask is a pure function of (seed, step, sample, module, position).

`torch.nn.Dropout` draws from a stream: which mask a sample gets depends on what was drawn before it. Here it does not,
so the size of a chunk, the number of processes and a resumed run cannot change it. The bits come from counters, not a
stream: sample and position each go through the 32-bit finaliser of MurmurHash3 (A. Appleby, public domain), and a
multiply-add hash modulo 2^32 (Carter & Wegman 1979, doi:10.1016/0022-0000(79)90044-8) joins them: position * a(sample)
+ b(sample). Its 32 bits serve two positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.errors import ConfigError

__all__ = ["KeyedDropout", "MaskKey", "keep_mask"]

_GOLDEN = -1640531527  # 2^32 over the golden ratio, as int32: neighbouring counters differ in all bits after it


@dataclass
class MaskKey:
    """What the masks of one tower depend on now; without samples nothing is dropped."""

    seed: int  # of the run
    step: int = 0
    samples: Tensor | None = None

    def use(self, step: int, samples: Tensor) -> None:
        """Drop by the masks of these samples, i64[B], at this step, until `clear`."""
        self.step, self.samples = step, samples

    def clear(self) -> None:
        """Drop nothing: for scoring."""
        self.samples = None


class KeyedDropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014) of f[B, ...] with the mask of `key`'s samples; identity without them.

    It does not look at `training`, so that a frozen base can stay in eval mode around it. A share 0 <= p < 1 of the
    elements is dropped; `module` is this module's number within its model, `key` shared by the modules of a tower.
    """

    def __init__(self, probability: float, module: int, key: MaskKey) -> None:
        super().__init__()
        self.probability, self.module, self.key = probability, module, key

    def forward(self, x: Tensor) -> Tensor:
        samples = self.key.samples
        if samples is None or self.probability == 0:
            return x
        rows, left = divmod(len(x), len(samples))  # rows of a sample: 1, or its windows (Swin)
        if left:
            raise ConfigError(
                f"dropout: {len(samples)} samples for {len(x)} rows; a tower must keep a sample's together"
            )
        mask = keep_mask(
            self.probability,
            seed=self.key.seed,
            step=self.key.step,
            module=self.module,
            samples=samples,
            positions=rows * x.shape[1:].numel(),
        )
        if torch.is_autocast_enabled(x.device.type):  # the layer that follows computes in it: half the bytes to drop
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _Drop.apply(x, mask.view(x.shape), 1 / (1 - self.probability))  # type: ignore[no-any-return, no-untyped-call]


class _Drop(torch.autograd.Function):
    """x * mask * scale, which keeps a byte an element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return x * mask.to(x.dtype).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return gradient * mask.to(gradient.dtype).mul_(ctx.scale), None, None


def keep_mask(probability: float, *, seed: int, step: int, module: int, samples: Tensor, positions: int) -> Tensor:
    """bool[B, positions], True where an element is kept; each row depends on its own one of the samples i64[B] alone.

    The share that is dropped has steps of 2^-16; `seed` is the run's, `step` the optimiser's.
    """
    with torch.no_grad():
        run = _scalar_bits(seed, step, module)
        number = _bits((samples & 0xFFFFFFFF).to(torch.int32) * _GOLDEN + run)
        number = _bits(number + (samples >> 32).to(torch.int32))[:, None]
        place = _bits(torch.arange((positions + 1) // 2, dtype=torch.int32, device=samples.device) * _GOLDEN ^ run)
        pairs = (number | 1) * place + _bits(number + _GOLDEN)
        pairs.bitwise_xor_((pairs >> 16).bitwise_and_(0xFFFF))  # the low half alone would know the low bits only
        limit = min(round(probability * 2**16), 2**16 - 1) - 2**15  # 2^15 is no int16: nothing would be dropped
        return (pairs.view(torch.int16) >= limit)[:, :positions]


def _bits(x: Tensor) -> Tensor:
    """Finaliser of MurmurHash3 on int32, in place: every bit of the input changes half of the output's."""
    x = x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(-2048144789)  # 0x85EBCA6B
    x = x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF)).mul_(-1028477387)  # 0xC2B2AE35
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _scalar_bits(*numbers: int) -> int:
    """One int32 for several numbers; each is mixed in before the next comes."""
    state = 0
    for number in numbers:
        for part in (number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF):
            state = (state * 31 + part + 0x9E3779B9) & 0xFFFFFFFF
            state = ((state ^ state >> 16) * 0x85EBCA6B) & 0xFFFFFFFF
            state = ((state ^ state >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
            state ^= state >> 16
    return state - 2**32 if state >= 2**31 else state
