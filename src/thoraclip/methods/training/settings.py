"""Settings that every training of a network has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from thoraclip.config import Settings
from thoraclip.errors import ConfigError
from thoraclip.methods.tracking import require_trackers
from thoraclip.models.augment import AUGMENTATIONS
from thoraclip.ranges import BatchSize, Count, Fraction, OneOf, Range, Seed, Shots, Weight, Weighting

__all__ = ["TrainingSettings"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """How long, how fast and on what a network is trained, and by what its weights are chosen."""

    batch_size: BatchSize = 64
    """Images per optimizer step; with shots, no more than these have for training."""
    chunk_size: BatchSize = 32
    """Images per forward pass, at most a batch: memory only, but for a network with dropout of its own."""
    epochs: Annotated[int, Range(1, 1_000_000)] = 10
    """Passes over the training images; an incomplete last batch is left out."""
    steps: Count = 0
    """Optimizer steps; 0 counts in epochs."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 1e-4
    """Peak of AdamW's step size."""
    warmup_steps: Annotated[int, Range(-1, 1_000_000_000)] = -1
    """Steps of linear warm-up before the cosine; -1 for a tenth of all."""
    weight_decay: Weight = 0.01
    """AdamW's."""
    max_norm: Weight = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    class_weight: Weighting = "none"
    """none, balanced (images of rare classes weigh more in the loss) or source (so do rare sources of a class, too)."""
    sampling: Annotated[str, OneOf(("shuffle", "balanced", "source"))] = "shuffle"
    """shuffle (every image once an epoch), balanced (as many of each class) or source (also of its sources)."""
    augmentation: Annotated[str, OneOf(AUGMENTATIONS)] = "standard"
    """How training images are turned, moved, zoomed and changed in grey: standard, light, randomised (also borders,
    marks, sharpness, grain and compression, against shortcuts) or none; never flipped."""
    val_fraction: Fraction = 0.1
    """Share of the training images held out by patient where the manifest names no validation split."""
    validate_every: Count = 0
    """Steps between validations; 0 for once an epoch."""
    patience: Count = 0
    """Stop after this many validations without a better one; 0 never stops early."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, more time."""
    checkpoint_minutes: Annotated[float, Range(0, 1_000_000, above=True)] = 5.0
    """Minutes between checkpoints; one is also written at SIGINT, SIGTERM and SIGHUP."""
    processes: Count = 0
    """How many processes there must be; 0 takes as many as were launched."""
    trackers: tuple[str, ...] = ()
    """Trackers that get losses, validations, test metrics and the model card too: mlflow, tensorboard, trackio, wandb.
    Their files and trackers.json, unlike the rest of a run folder, are other bytes in every run."""
    shots: Shots = "all"
    """Labelled patients of each class that are drawn from the training images, validation included; all for all."""
    seed: Seed = 0
    """Decides initial values, shots, held-out part, order, augmentation and dropout."""

    NOT_IN_THE_RESULT: ClassVar[tuple[str, ...]] = ("checkpoint_minutes", "processes", "trackers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience and getattr(self, "select", "") == "last":
            raise ConfigError(
                f"patience = {self.patience}: with select = last no validation is the better one; set it to 0"
            )
        require_trackers(self.trackers)
