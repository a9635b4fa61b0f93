"""The first transformer blocks of a vision tower apart from the last ones: tokens that can be kept, and what follows.

    pixels -> embeddings, first blocks -> tokens [B, T, D] -> last blocks, last norm, pooling -> features

Where the first blocks are frozen, the tokens of an image never change. Both halves run the tower's own forward, in
which the blocks of the other half are passed over; so position embeddings, masks and pooling are the architecture's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.errors import ConfigError
from thoraclip.models.vision_encoder import VisionEncoder

__all__ = ["FrozenPrefix", "tower_blocks"]


def tower_blocks(encoder: VisionEncoder, tower: str, last: int) -> dict[str, nn.Module]:
    """The transformer blocks of the `vision` or `text` tower of a model, which may have LoRA, by name, in order.

    Raises ConfigError where the tower is no single chain of blocks, or has fewer than the `last` that are asked for.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    begin = encoder.towers[tower]
    modules = ((name.removeprefix("base_model.model."), module) for name, module in encoder.model.named_modules())
    blocks = {n: m for n, m in modules if n.startswith(begin) and isinstance(m, GradientCheckpointingLayer)}
    which = f"lora_blocks = {last}: the {tower} tower of '{encoder.name}'"
    has_stages = tower == "vision" and hasattr(encoder.tower.config, "depths")  # Swin: each with its own width
    if has_stages or len({name.rpartition(".")[0] for name in blocks}) != 1:
        raise ConfigError(f"{which} is no single chain of transformer blocks; leave lora_blocks out")
    if last > len(blocks):
        raise ConfigError(f"{which} has {len(blocks)} blocks; take at most {len(blocks)}")
    return blocks


@dataclass(frozen=True)
class FrozenPrefix:
    """A vision tower whose first blocks are frozen."""

    encoder: VisionEncoder  # its model may have LoRA in the other blocks
    blocks: Sequence[nn.Module]  # all of the vision tower
    count: int  # of the first blocks, which are frozen; 1 or more

    @classmethod
    def of(cls, encoder: VisionEncoder, last: int) -> FrozenPrefix | None:
        """All but the last blocks; `None` where none is left, or with `last` = 0, which stands for all."""
        if not last:
            return None
        blocks = list(tower_blocks(encoder, "vision", last).values())
        return cls(encoder, blocks, len(blocks) - last) if last < len(blocks) else None

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """f32[B, 3, H, W] -> [B, T, D], the output of the frozen blocks."""
        kept = list[Tensor]()

        def keep(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            kept.append(hidden)
            return hidden

        with _replaced(self.blocks[self.count :], keep):
            self.encoder.pooled(pixels)
        return kept[0]

    def image_features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> as `VisionEncoder.image_features`, with gradient."""
        side = self.encoder.preprocess.size
        # its embedding is passed over, so that one image is enough where the tower does not make a mask of it
        count = len(tokens) if self.encoder.architecture.patchified else 1
        blank = torch.zeros(1, device=tokens.device).expand(count, 3, side, side)
        with _replaced(self.blocks[: self.count], lambda *_, **__: tokens):
            return self.encoder.image_features(blank)


@contextmanager
def _replaced(blocks: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Blocks with another forward."""
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
