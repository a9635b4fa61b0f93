"""`trivial`: boosted trees on what needs no medicine, the floor that a table of classifiers has to show.

Thumbnail, histogram, frame, compression and size of the file tell the classes apart where their pictures come from
different places (DeGrave et al. 2021, doi:10.1038/s42256-021-00338-7; Maguolo & Nanni 2021, arXiv:2004.12823): a
classifier that is no better than these has not been shown to look at a lung.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from thoraclip.config import Settings
from thoraclip.data.check.inspection import MEASURED, inspect
from thoraclip.dtypes import Floats, Ints, Singles
from thoraclip.errors import ConfigError, ImageError
from thoraclip.imaging.remedies import NONE, REMEDIES
from thoraclip.methods.parts import Part, parts_of
from thoraclip.methods.running import MethodOutput, RunContext, pooled_predictions
from thoraclip.methods.sources import sources_of
from thoraclip.methods.zeroshot import macro_f1
from thoraclip.models.heads import log_loss
from thoraclip.models.weighting import source_weights
from thoraclip.ranges import FoldNumber, Fraction, Joined, OneOf, Range, Seed, Shots, Weight, Weighting
from thoraclip.runs import Progress
from thoraclip.tables.manifest import Manifest

__all__ = ["GROUPS", "Config", "run", "trivial_features"]

GROUPS: Mapping[str, str] = {
    "thumbnail": "grey levels of the whole picture at 16 x 16, squashed",
    "histogram": "shares of 32 equal ranges of grey levels, in the picture at 96 x 96",
    "appearance": "frame, brightness, bars, sharpness, compression, marks: the grey statistics of `check`",
    "file": "size of the file, bits per pixel, width over height, millions of pixels",
}
"""Name -> what is in it, in the order of the columns; every column is in one group."""
_FILE = ("file_kilobytes", "bits_per_pixel", "aspect_ratio", "megapixels")
_SIDE, _BINS = 16, 32
_SHUFFLES = 5
_BLOCK = 256
"""Pictures at a time. Memory only."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """What one run on trivial features needs."""

    features: tuple[Annotated[str, OneOf(GROUPS)], ...] = tuple(GROUPS)
    """Groups of features: thumbnail, histogram, appearance, file; see docs/methods.md."""
    remedy: Annotated[str, Joined(REMEDIES)] = NONE
    """What is done to every picture before it is measured, as in the other methods; what is known of the file stays."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the scores; empty for the manifest's, sorted."""
    only_folds: tuple[FoldNumber, ...] = ()
    """Folds that are held out and scored, where the manifest has folds; empty for all of them."""
    max_iter: Annotated[int, Range(1, 100_000)] = 200
    """Rounds of boosting that are tried; validation chooses how many are kept."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 0.1
    """Share of each tree that is added."""
    max_leaf_nodes: Annotated[int, Range(2, 100_000)] = 15
    """Leaves of a tree at most."""
    min_samples_leaf: Annotated[int, Range(1, 1_000_000_000)] = 20
    """Images in a leaf at least; no more than a tenth of the training images."""
    l2: Weight = 1.0
    """Penalty on the values of the leaves."""
    refit: bool = True
    """Fit again on training plus validation images once the number of rounds is chosen."""
    class_weight: Weighting = "none"
    """none, balanced (rare classes weigh more in the loss) or source (so do rare sources of a class, too)."""
    val_fraction: Fraction = 0.2
    """Share of the training images held out by patient where the manifest names no validation split."""
    shots: Shots = "all"
    """Labelled patients of each class that are drawn from the training images, validation included; all for all."""
    seed: Seed = 0
    """Decides the shots, the held-out part, and the shuffles behind the importances."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.features:
            raise ConfigError(f"features = []: one or more of {', '.join(GROUPS)} are needed")

    def inputs(self) -> dict[str, str]:
        """Nothing but the manifest is read."""
        return {}


def run(config: Config, context: RunContext) -> MethodOutput:
    """Fit one model per fold (or one for the split), predict the test images, pool; no model file is kept.

    The validation scores that are kept are those of the model that was fitted on the training images alone.
    """
    manifest = context.manifest
    labels = manifest.label_set(config.classes)
    targets, sources = manifest.targets(labels), sources_of(config, manifest)
    folds = list(parts_of(config, manifest, labels))  # before any image is opened
    # beside the embeddings, where a study that looked for near duplicates has measured all images already
    folder = context.cache.with_name("inspection" if config.remedy == NONE else f"inspection-{config.remedy}")
    features = trivial_features(manifest, folder, remedy=config.remedy, progress=context.progress)
    groups = {name: features[name] for name in GROUPS if name in config.features}
    rows, scores, chosen, importances = [], [], [], []
    for part in folds:
        test, validation, facts, importance = _fit_and_score(config, groups, targets, part, sources)
        context.keep_validation(part, labels, validation)
        chosen.append({"fold": part.fold, **facts})
        importances.append(importance)
        rows.append(part.test)
        scores.append(test)
    details = {
        "chosen": chosen,
        "features": {name: {"columns": values.shape[1], "what": GROUPS[name]} for name, values in groups.items()},
        "importance": {
            name: {measure: float(np.mean([fold[name][measure] for fold in importances])) for measure in measures}
            for name, measures in importances[0].items()
        },
    }
    metrics = [{**row, "importance": importance} for row, importance in zip(chosen, importances, strict=True)]
    return MethodOutput(pooled_predictions(manifest, labels, rows, scores), details, metrics)


def trivial_features(
    manifest: Manifest, folder: Path, *, remedy: str = NONE, progress: Progress | None = None
) -> dict[str, Singles]:
    """Group -> f32[N, K], a row per image; see `GROUPS`. Pictures are measured once, see `data.check.inspect`.

    Args:
        manifest: N images.
        folder: where the measurements are kept; a killed pass goes on, a finished one is only read.
        remedy: as in `Preprocess`.
        progress: called with (done, total).

    Raises:
        ImageError: a picture cannot be read.
    """
    inspection = inspect(manifest, folder, remedy=remedy, progress=progress)
    for row, reason in sorted(inspection.unreadable.items()):
        raise ImageError(f"{manifest.paths()[row]}: {reason}")
    measured = dict(zip(MEASURED, np.asarray(inspection.statistics).T, strict=True))
    measured["bits_per_pixel"] = 8e-3 * measured["file_kilobytes"] / measured["megapixels"]
    small, histogram = [], []
    for first in range(0, len(manifest), _BLOCK):
        block = np.asarray(inspection.wholes[first : first + _BLOCK])
        count, side = len(block), block.shape[1]
        cells = block.reshape(count, _SIDE, side // _SIDE, _SIDE, side // _SIDE)
        small.append(cells.mean(axis=(2, 4), dtype=np.float32).reshape(count, -1))
        bins = (block.reshape(count, -1) // (256 // _BINS)).astype(np.int64) + np.arange(count)[:, None] * _BINS
        counted = np.bincount(bins.ravel(), minlength=count * _BINS).reshape(count, _BINS)
        histogram.append((counted / side**2).astype(np.float32))
    return {
        "thumbnail": np.concatenate(small),
        "histogram": np.concatenate(histogram),
        "appearance": np.stack([measured[name] for name in MEASURED if name not in _FILE], axis=1),
        "file": np.stack([measured[name] for name in _FILE], axis=1),
    }


def _table(groups: Mapping[str, Singles], rows: Ints) -> Singles:
    return np.concatenate([values[rows] for values in groups.values()], axis=1)


def _fit_and_score(
    config: Config, groups: Mapping[str, Singles], targets: Ints, part: Part, sources: Ints | None
) -> tuple[Floats, Floats, dict[str, Any], dict[str, dict[str, float]]]:
    """Choose the number of rounds by validation log-loss, refit on training plus validation if asked, score the test.

    Returns:
        Scores f64[T, C] of the test images, those f64[V, C] of the validation images by the model before the second
        fit, what was chosen, and the importance of each group.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    def fitted(rows: Ints, rounds: int) -> Any:
        model = HistGradientBoostingClassifier(
            max_iter=rounds,
            learning_rate=config.learning_rate,
            max_leaf_nodes=config.max_leaf_nodes,
            min_samples_leaf=max(1, min(config.min_samples_leaf, len(rows) // 10)),
            l2_regularization=config.l2,
            early_stopping=False,
            class_weight="balanced" if config.class_weight == "balanced" else None,
            random_state=config.seed,
        )
        weight = None if sources is None else source_weights(targets[rows], sources[rows])
        return model.fit(_table(groups, rows), targets[rows], sample_weight=weight)

    with threadpool_limits(1):  # sums keep one order everywhere; entered after scikit-learn, whose threads it limits
        candidate, known = fitted(part.train, config.max_iter), targets[part.val]
        staged = list(candidate.staged_predict_proba(_table(groups, part.val)))
        losses = [log_loss(scores, known) for scores in staged]
        rounds = int(np.argmin(losses)) + 1
        importance = _importance(candidate, staged[:rounds], groups, targets, part, config.seed)
        both = np.union1d(part.train, part.val)
        model = fitted(both if config.refit else part.train, rounds)
        scores: Floats = model.predict_proba(_table(groups, part.test))
    sizes = {"train": len(part.train), "val": len(part.val), "test": len(part.test)}
    chosen = {"val_log_loss": losses[rounds - 1], "at_edge_of_grid": rounds == config.max_iter}
    return scores, staged[rounds - 1], {"rounds": rounds, **sizes, **chosen}, importance


def _importance(
    model: Any,
    staged: Sequence[Floats],
    groups: Mapping[str, Singles],
    targets: Ints,
    part: Part,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Group -> how much validation log-loss rises and macro F1 falls when its rows are shuffled (Breiman 2001).

    `staged` are its scores of the validation images after each of the rounds that are kept.
    All columns of a group move together; the mean over five shuffles. A group that another one can stand in for shows
    little, however much it tells alone.
    """
    known = targets[part.val]

    def measure(scores: Floats) -> Floats:
        return np.array([log_loss(scores, known), -macro_f1(known, scores.argmax(axis=1), scores.shape[1])])

    rng = np.random.default_rng([seed, part.fold or 0])
    whole, importance = measure(staged[-1]), {}
    for name in groups:
        changes = []
        for _ in range(_SHUFFLES):
            shuffled = rng.permutation(part.val)
            table = np.concatenate([v[shuffled if n == name else part.val] for n, v in groups.items()], axis=1)
            scores = next(islice(model.staged_predict_proba(table), len(staged) - 1, None))
            changes.append(measure(scores) - whole)
        rise, fall = np.mean(changes, axis=0)
        importance[name] = {"log_loss": float(rise), "macro_f1": float(fall)}
    return importance
