"""Scores of a trained image classifier, by PyTorch or by another runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Floats, Greys, Ints, Singles
from thoraclip.methods.engines import cut, measured, threads_here
from thoraclip.models.backbones import Backbone
from thoraclip.models.heads import softmax
from thoraclip.models.runtimes import TORCH, Compute, open_runtime, require_runtime
from thoraclip.runs import Progress
from thoraclip.threads import in_order

__all__ = ["compute_of", "scores_of"]

_BATCH = 64


class _Logits(nn.Module):
    """f32[B, 3, S, S] -> f32[B, C], by a copy of the network."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = copy.deepcopy(backbone.network)
        self._backbone = replace(backbone, network=self.network)

    def forward(self, pixels: Tensor) -> Tensor:
        return self._backbone.logits(pixels)


def compute_of(
    backbone: Backbone, greys: Greys, rows: Ints, *, runtime: str, announce: Callable[[str], None]
) -> Compute | None:
    """What gives the logits of some rows of images u8[N, S, S] in a runtime; `None` for PyTorch.

    Raises:
        ConfigError, MissingExtraError: see `runtimes.require_runtime`.
        ModelError: the network cannot be exported or loaded; `auto` only says so.
    """
    require_runtime(runtime, precision=backbone.precision, device=backbone.device.type)
    if runtime == TORCH or (backbone.precision, backbone.device.type) != ("fp32", "cpu"):
        return None
    backbone.network.eval()

    @torch.inference_mode()
    def plain(pictures: Greys) -> list[Singles]:
        return [backbone.logits(backbone.expand(pictures)).numpy()]

    def write(path: Path) -> None:
        from thoraclip.models.onnx_files import write_outputs  # with onnx

        write_outputs(_Logits(backbone), backbone.preprocess, path)

    if runtime != "auto":
        return open_runtime(runtime, write, threads=threads_here())
    return measured(plain, write, lambda part: _read(greys, rows, part), len(rows), announce).compute


def scores_of(
    backbone: Backbone, greys: Greys, rows: Ints, *, progress: Progress | None = None, compute: Compute | None = None
) -> Floats:
    """f64[R, C] of some images u8[N, S, S]; each row sums to 1. `compute` gives the logits in place of PyTorch."""
    backbone.network.eval()
    made = []
    for some in _logits(backbone, lambda part: _read(greys, rows, part), cut(len(rows), _BATCH), compute):
        made.append(some.astype(np.float64))
        if progress:
            progress(min(len(made) * _BATCH, len(rows)), len(rows))
    return softmax(np.concatenate(made))


def _logits(
    backbone: Backbone, read: Callable[[range], Greys], parts: list[range], compute: Compute | None
) -> Iterator[Singles]:
    if compute is not None:
        yield from in_order(lambda part: compute(read(part))[0], parts, workers=threads_here())
        return
    for part in parts:
        with torch.inference_mode():
            logits = backbone.logits(backbone.expand(read(part))).cpu().numpy()
        yield logits


def _read(greys: Greys, rows: Ints, part: range) -> Greys:
    return np.array(greys[rows[part.start : part.stop]])
