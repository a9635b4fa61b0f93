"""The plain way: a Dataset that opens with PIL, the model's own image processor, the encoder in fp32, again for every
epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from thoraclip.models.checkpoint import locate

WORKERS = 2
Batches = Iterable[tuple[Tensor, Tensor]]
"""(f32[B, ...] pictures or features, i64[B] which of them)."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """Files -> (f32[3, S, S], number of the file)."""

    def __init__(self, paths: Sequence[Path], model: str) -> None:
        from transformers import AutoImageProcessor

        self.paths, self._processor = paths, AutoImageProcessor.from_pretrained(locate(model)[0])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[number]) as picture:
            made = self._processor(images=picture.convert("RGB"), return_tensors="pt")
        return made["pixel_values"][0], number


def loader(data: Dataset[Any], *, batch_size: int, shuffle: bool = False, workers: int = WORKERS) -> DataLoader[Any]:
    """Batches, read by so many processes."""
    order = torch.Generator().manual_seed(0)
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, num_workers=workers, generator=order)


def load_tower(model: str) -> Callable[[Tensor], Tensor]:
    """f32[B, 3, S, S] -> pooled features f32[B, D], in fp32."""
    from transformers import AutoModel

    tower = AutoModel.from_pretrained(locate(model)[0]).float().eval().vision_model

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        return tower(pixel_values=pixels).pooler_output

    return features


def encoded(batches: Batches, tower: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pictures -> batches of features."""
    for pixels, numbers in batches:
        yield tower(pixels), numbers


class Softmax:
    """A linear layer under AdamW, as a study trains it: batches of 80, a learning rate of 0.001, no penalty chosen."""

    def __init__(self, width: int, targets: npt.NDArray[np.int64], classes: int) -> None:
        torch.manual_seed(0)
        self._layer, self._targets = nn.Linear(width, classes), torch.from_numpy(targets)
        self._optimizer = torch.optim.AdamW(self._layer.parameters(), lr=1e-3)

    def epoch(self, batches: Batches) -> None:
        """One pass."""
        for features, numbers in batches:
            loss = nn.functional.cross_entropy(self._layer(features), self._targets[numbers])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    @torch.no_grad()
    def predict(self, features: Tensor) -> npt.NDArray[np.int64]:
        """i64[B] classes."""
        return np.asarray(self._layer(features).argmax(dim=1).numpy())
