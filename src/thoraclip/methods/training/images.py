"""The images of a batch, augmented."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thoraclip.dtypes import Greys, Ints
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.models.augment import AUGMENTATIONS, augment

__all__ = ["augmented"]


def augmented(greys: Greys, batch: Batch, at: Ints, config: TrainingSettings, device: torch.device) -> Tensor:
    """u8[b, S, S] of the images at some places of a batch, augmented by their samples."""
    images = torch.from_numpy(np.array(greys[batch.rows[at]])).to(device)
    chosen = AUGMENTATIONS[config.augmentation]
    if chosen is None:
        return images
    return augment(images, chosen, seed=config.seed, step=batch.step, samples=batch.samples[at].tolist())
