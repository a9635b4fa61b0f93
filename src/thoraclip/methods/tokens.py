"""The tokens of images behind the frozen first blocks of a vision tower, computed once and kept on disk.

    images, as they are and in each augmented view --FrozenPrefix--> tokens-*/tokens.npy --> every step and validation

With `lora_blocks` the blocks before the last ones never change, so neither do these tokens. They are stored in the
precision of the run: fp32 exactly, bf16 as the upper 16 bits.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thoraclip.dtypes import Greys, Ints, Singles
from thoraclip.imaging import DECODING
from thoraclip.methods.engines import cut
from thoraclip.methods.parts import Part
from thoraclip.methods.training.folds import FoldTraining
from thoraclip.methods.training.images import augmented
from thoraclip.methods.training.sampler import Batch
from thoraclip.models.augment import AUGMENTATIONS, drawn_views
from thoraclip.models.lora import TunableEncoder
from thoraclip.models.prefix import FrozenPrefix
from thoraclip.models.vision_encoder import VisionEncoder, unit
from thoraclip.runs import digest, locked, make_folder, require_room
from thoraclip.tables.arrays import ArrayKind, ArrayWriter, is_valid, read_arrays

__all__ = ["TokenCache", "cache_size", "cached_views", "frozen_prefix", "make_cache", "remove_tokens"]

_BATCH = 32


@dataclass(frozen=True)
class TokenCache:
    """The tokens that a training reads."""

    prefix: FrozenPrefix  # the tower around them
    views: Mapping[int, tuple[Ints, npt.NDArray[Any]]]  # see `cached_views` -> (rows, [R, T, D] on disk)
    folders: Sequence[Path]  # where they are
    view_folders: Sequence[Path]  # those of them that hold augmented views
    seed: int  # of the run

    def of_batch(self, step: int, rows: Ints, samples: Ints) -> tuple[Tensor, Tensor]:
        """(pooled, projected) of some images of a batch, each in the view that its sample has at this step."""
        count = max(self.views)
        drawn = (
            drawn_views(count, seed=self.seed, step=step, samples=samples.tolist()) if count else np.zeros_like(rows)
        )
        device = self.prefix.encoder.device
        views = {int(view): np.flatnonzero(drawn == view) for view in np.unique(drawn)}
        tokens = torch.cat([self._read(view, rows[at]) for view, at in views.items()])
        order = np.argsort(np.concatenate(list(views.values())))
        return self.prefix.image_features(tokens[torch.from_numpy(order)].to(device))

    @torch.no_grad()
    def encode(self, rows: Ints) -> tuple[Singles, Singles]:
        """As `VisionEncoder.encode_greys`, of rows whose tokens are there as they are."""
        encoder = self.prefix.encoder
        with encoder.autocast():
            pooled, projected = self.prefix.image_features(self._read(0, rows).to(encoder.device))
        return encoder.fetch((pooled.float(), unit(projected)))

    def _read(self, view: int, rows: Ints) -> Tensor:
        """f32[len(rows), T, D]."""
        there, array = self.views[view]
        values = np.array(array[np.searchsorted(there, rows)])
        if values.dtype == np.uint16:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(values)


def frozen_prefix(config: Any, encoder: VisionEncoder) -> FrozenPrefix | None:
    """What `finetune` computes once; `None` where no block of the vision tower is frozen, or nothing is to be kept."""
    is_kept = config.prefix_views and config.lora.towers != "text"
    return FrozenPrefix.of(encoder, config.lora_blocks) if is_kept else None


def cached_views(config: Any, targets: Ints, part: Part) -> dict[int, Ints]:
    """View -> i64 rows of the images whose tokens a training reads in it.

    View 0 is the image as it is, of validations; and of training, where nothing is augmented. The others are augmented.
    With folds every labelled image is in all views, which the folds share.

    Args:
        config: of `finetune`.
        targets: i64[N], -1 where the class is unknown.
        part: of the training.
    """
    both, augmented = np.sort(np.concatenate([part.train, part.val])), AUGMENTATIONS[config.augmentation] is not None
    if part.fold is not None:
        both = np.flatnonzero(targets >= 0)
        return dict.fromkeys(range(1 + config.prefix_views * augmented), both)
    plain = both if config.fits_head or not augmented else part.val
    return {0: plain} | {view + 1: part.train for view in range(config.prefix_views * augmented)}


def cache_size(encoder: VisionEncoder, prefix: FrozenPrefix, views: Mapping[int, Ints]) -> tuple[int, tuple[int, int]]:
    """(bytes, tokens and numbers a token of an image); one blank image goes through the frozen blocks."""
    side = encoder.preprocess.size
    tokens, width = prefix.tokens(encoder.expand(np.zeros((1, side, side), dtype=np.uint8))).shape[1:]
    images = sum(map(len, views.values()))
    return images * tokens * width * np.dtype(_stored(encoder)).itemsize, (tokens, width)


def make_cache(training: FoldTraining[Any], tuned: TunableEncoder, greys: Greys) -> TokenCache | None:
    """The tokens of a training, found or computed now; `None` as in `frozen_prefix`.

    A killed pass goes on where it stopped. Several processes share the work, and the first one writes.

    Raises:
        InputError: the disk has no room.
    """
    config, context, group, encoder = training.config, training.context, training.group, tuned.encoder
    prefix = frozen_prefix(config, encoder)
    if prefix is None:
        return None
    views = cached_views(config, training.targets, training.part)
    root = context.pixels or context.folder.path / "pixels"
    marks = {view: _fingerprint(training, tuned, prefix, view, rows) for view, rows in views.items()}
    folders = {view: root / f"tokens-{'view-' if view else ''}{mark[:12]}" for view, mark in marks.items()}
    kind = _kind(encoder)
    missing = {view: rows for view, rows in views.items() if not is_valid(folders[view], kind, marks[view])}
    if group.first(bool(missing)) and group.is_main:
        size, (tokens, width) = cache_size(encoder, prefix, missing)
        images = f"{sum(map(len, missing.values())):,} images and augmented views x {tokens} tokens x {width} numbers"
        context.log(
            f"{training.title}first {prefix.count} of {len(prefix.blocks)} blocks: {images}, {size / 1e9:.2f} GB"
        )
        make_folder(root)
        remedy = "name a folder on another disk with --pixels, lower prefix_views, or set it to 0"
        begun = sum(part.stat().st_size for view in missing for part in folders[view].glob("*.part"))
        require_room(root, size - begun, "the cache of tokens", remedy)
    group.wait()
    arrays = {}
    for view, rows in views.items():
        with locked(folders[view], option="--pixels") if group.is_main else nullcontext():
            arrays[view] = rows, _filled(training, prefix, greys, (view, rows), (folders[view], marks[view]))
    augmented = tuple(folder for view, folder in folders.items() if view)
    return TokenCache(prefix, arrays, tuple(folders.values()), augmented, config.seed)


def _filled(
    training: FoldTraining[Any],
    prefix: FrozenPrefix,
    greys: Greys,
    seen: tuple[int, Ints],
    place: tuple[Path, str],
) -> npt.NDArray[Any]:
    """[R, T, D] on disk, the tokens of the rows of one view; `place` is a folder with its fingerprint."""
    group, encoder, progress = training.group, prefix.encoder, training.context.progress
    (view, rows), (folder, fingerprint), kind = seen, place, _kind(encoder)
    if not group.first(is_valid(folder, kind, fingerprint)):
        writer = ArrayWriter(folder, kind, total=len(rows), token=fingerprint) if group.is_main else None
        for batch in cut(len(rows), _BATCH, start=int(group.first(writer.rows if writer else 0))):
            some = rows[batch.start : batch.stop]
            own, _ = group.own(len(some))
            settings = training.config if view else dataclasses.replace(training.config, augmentation="none")
            images = augmented(greys, Batch(view, some, some), own.numpy(), settings, encoder.device)
            with encoder.autocast():
                made = prefix.tokens(encoder.expand(images))
            whole = group.gather(made.float(), len(some)).cpu()
            if writer:
                if _stored(encoder) == "uint16":
                    whole = whole.bfloat16().view(torch.int16)
                writer.append({"tokens": whole.numpy().view(_stored(encoder))})
            if progress:
                progress(batch.stop, len(rows))
        if writer:
            writer.finish(training.context.manifest.take(rows), facts={}, fingerprint=fingerprint)
        group.wait()
    return read_arrays(folder, kind).arrays["tokens"]


def _fingerprint(
    training: FoldTraining[Any], tuned: TunableEncoder, prefix: FrozenPrefix, view: int, rows: Ints
) -> str:
    """SHA-256 over all that the tokens of a view depend on."""
    encoder, config = tuned.encoder, training.config
    images = [training.context.manifest.take(rows).content_fingerprint, DECODING, encoder.preprocess.as_dict()]
    tower = [tuned.base, prefix.count, encoder.precision]
    augmentation = AUGMENTATIONS[config.augmentation]
    change = [view, config.seed, dataclasses.asdict(augmentation)] if view and augmentation else []
    return digest([images, tower, change])


def _stored(encoder: VisionEncoder) -> str:
    """NumPy's type of a stored number."""
    return "uint16" if encoder.precision == "bf16" else "float32"


def _kind(encoder: VisionEncoder) -> ArrayKind:
    return ArrayKind("tokens", {"tokens": (_stored(encoder), 3)}, schema=1, remedy="thoraclip finetune")


def remove_tokens(root: Path, folders: Iterable[Path] = ()) -> None:
    """Remove some folders of tokens, or all that lie in a folder of pixel caches."""
    for folder in folders or root.glob("tokens-*"):
        shutil.rmtree(folder, ignore_errors=True)
