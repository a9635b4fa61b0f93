"""Gradients of a loss over a whole batch in the memory of one chunk (GradCache, Gao et al. 2021, arXiv:2101.06983).

    1  encode every chunk without gradient          -> representations of the whole batch
    2  loss over all of them, backward              -> its gradient with respect to each representation
    3  encode every chunk again, with gradient, and go back from  sum(representation * its gradient)
       (the last chunk kept its graph in step 1: a batch of one chunk is a plain step)

By the chain rule the parameters' gradients are those of one big batch, exactly, as long as both passes compute the same
function: dropout must not depend on the pass, the chunk or the process (see `models.dropout`). The loss's own
parameters (logit scale, bias) get their gradient once, in step 2. Over several processes each encodes its share of the
rows, all see the representations of all, and each goes back through its own rows; summing the encoders' gradients over
the processes then gives the gradient of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thoraclip.methods.training.processes import ProcessGroup

__all__ = ["Tower", "cached_backward"]


@dataclass(frozen=True)
class Tower:
    """One encoder and the rows that it is asked for in this step."""

    rows: int  # N, how many
    encode: Callable[[Tensor], Tensor]  # i64[b] rows of 0..N-1 -> f32[b, P] with gradient; a pure function of the rows


def cached_backward(
    towers: Sequence[Tower], loss: Callable[..., Tensor], *, chunk_size: int, processes: ProcessGroup
) -> Tensor:
    """Add the gradients of `loss(representations of towers[0], of towers[1], ...)` to all parameters' `.grad`.

    Args:
        towers: the encoders.
        loss: a function of one f32[N, P] a tower, giving a scalar; called once.
        chunk_size: rows encoded with gradient at a time: memory only, the result does not depend on it.
        processes: how rows are shared. Encoders' gradients are those of this process's rows and are still to be summed;
            the loss's own parameters have the whole gradient in every process.

    Returns:
        The loss, a scalar without gradient. Where it is not finite no gradient has gone through an encoder.
    """
    passes = [_first_pass(tower, *processes.own(tower.rows), chunk_size) for tower in towers]
    whole = [
        processes.gather(first.representations, tower.rows).detach().requires_grad_()
        for tower, first in zip(towers, passes, strict=True)
    ]
    value = loss(*whole)
    if not bool(torch.isfinite(value)):
        return value.detach()
    value.backward()  # type: ignore[no-untyped-call]
    gradients = [representation.grad for representation in whole]
    for first, gradient in zip(passes, gradients, strict=True):
        first.trained = _back(first.last, first.last_rows, gradient)
        first.last = None  # the graphs of all towers go before any chunk is encoded again: the memory is a plain step's
    for tower, first, gradient in zip(towers, passes, gradients, strict=True):
        for rows in first.earlier_rows if first.trained else ():
            _back(tower.encode(rows), rows, gradient)
    return value.detach()


@dataclass
class _FirstPass:
    """What one tower leaves behind: everything without gradient, and the last chunk's graph."""

    representations: Tensor  # f32[b, P] of this process's share, padding included, without gradient
    last: Tensor | None  # f32[b', P] with gradient
    last_rows: Tensor  # the rows behind them, without padding
    earlier_rows: Sequence[Tensor]
    trained: bool = field(init=False)  # False where nothing in the tower has a gradient: no chunk is encoded again


def _first_pass(tower: Tower, rows: Tensor, real: int, chunk_size: int) -> _FirstPass:
    *earlier, end = torch.split(rows, chunk_size)
    with torch.no_grad():
        made = [tower.encode(chunk) for chunk in earlier]
    last, before = tower.encode(end), len(rows) - len(end)
    again = min(real, before)
    chunks = torch.split(rows[:again], chunk_size) if again else ()
    return _FirstPass(torch.cat([*made, last.detach()]), last, rows[before:real], chunks)


def _back(representation: Tensor | None, rows: Tensor, gradient: Tensor | None) -> bool:
    """Go back from some rows; False where there is no way: the loss does not use them, or nothing behind is trained."""
    if representation is None or gradient is None or not representation.requires_grad:
        return False
    if len(rows):
        own = gradient[rows.to(gradient.device)]
        (representation[: len(rows)] * own).sum().backward()  # type: ignore[no-untyped-call]
    return True
