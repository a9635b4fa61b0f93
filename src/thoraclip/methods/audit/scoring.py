"""Features and scores of the images under every view, kept on disk so that a killed audit goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.data.views import FILLS, VIEWS, Scene, make_view
from thoraclip.dtypes import Floats, Ints, Masks, Singles
from thoraclip.predictor import Looker
from thoraclip.runs import Progress, digest
from thoraclip.tables.arrays import ArrayKind, ArrayWriter, is_valid, read_arrays
from thoraclip.tables.manifest import Manifest

__all__ = ["ViewScores", "choose_partners", "fills_in_turn", "score_views"]

_ANSWERS = ArrayKind(
    name="answers", arrays={"features": ("float32", 2), "scores": ("float64", 2)}, schema=1, remedy="thoraclip audit"
)


@dataclass(frozen=True)
class ViewScores:
    """Features and scores of N images under one view; NaN where an image was not shown."""

    features: Singles  # f32[N, D]
    scores: Floats  # f64[N, C]

    @property
    def named(self) -> Ints:
        """i64[N]: the class of the highest score; -1 where an image was not shown."""
        shown = np.isfinite(self.scores).all(axis=1)
        return np.where(shown, np.nan_to_num(self.scores).argmax(axis=1), -1).astype(np.int64)


def choose_partners(target: Ints, groups: Ints, part: Ints, usable: Masks, *, seed: int) -> tuple[Ints, Ints, Ints]:
    """For every image one of another group: of its class, of another class, of any; -1 where there is none.

    A partner is of the same part, so that the classifier that is asked was not trained on it: it could know the
    background of a training image together with its label by heart.

    Args:
        target: i64[N].
        groups: i64[N].
        part: i64[N], number of the classifier that has seen neither.
        usable: bool[N], images that may be chosen.
        seed: decides.
    """
    rng = np.random.default_rng([seed, 1])
    chosen = np.full((3, len(target)), -1, dtype=np.int64)
    for row in range(len(target)):
        others = usable & (groups != groups[row]) & (part == part[row])
        for number, pool in enumerate((others & (target == target[row]), others & (target != target[row]), others)):
            rows = np.flatnonzero(pool)
            if len(rows):
                chosen[number, row] = rows[rng.integers(len(rows))]
    return chosen[0], chosen[1], chosen[2]


def fills_in_turn(target: Ints, *, seed: int) -> Ints:
    """i64[N]: 0, 1, 2, ... dealt at random within each class i64[N], see `Scene.turn`."""
    turn = np.empty(len(target), dtype=np.int64)
    turn[np.lexsort((np.random.default_rng([seed, 3]).random(len(target)), target))] = np.arange(len(target))
    return turn


def score_views(
    scene: Scene,
    classifiers: Sequence[tuple[Looker, Ints]],
    *,
    batch_size: int,
    manifest: Manifest,
    cache: Path,
    token: str,
    kept: Callable[[Looker, Ints], tuple[Any, Any] | None] = lambda *_: None,
    progress: Progress | None = None,
) -> dict[str, ViewScores]:
    """View -> answers of every image that the view can be made of; a view without such an image is left out.

    Args:
        scene: N pictures.
        classifiers: (classifier, i64 rows that it judges); the rows of all are disjoint.
        batch_size: images per forward pass.
        manifest: of the N images.
        cache: folder that keeps the answers; a killed pass goes on there.
        token: equal for equal classifiers, pictures and lungs.
        kept: (classifier, rows) -> features and scores of these images as they are, where they are known already.
        progress: called with (done, total) over all views.
    """
    rows = {name: _shown(name, scene) for name in VIEWS}
    total, done = sum(len(r) for r in rows.values()), 0
    scores: dict[str, ViewScores] = {}
    for name, shown in rows.items():
        if not len(shown):
            continue
        folder = cache / name
        fingerprint = digest([token, name, batch_size, shown.tolist()])
        if is_valid(folder, _ANSWERS, fingerprint):
            arrays = read_arrays(folder, _ANSWERS).arrays
            scores[name] = ViewScores(np.array(arrays["features"]), np.array(arrays["scores"]))
            done += len(shown)
        else:
            made: list[tuple[Ints, Any, Any]] = []
            for classifier, own in classifiers:
                judged = np.intersect1d(shown, own)
                known = kept(classifier, judged) if name == "original" and len(judged) else None
                if known:
                    made.append((judged, *known))
                    done += len(judged)
                for first in range(0, 0 if known else len(judged), batch_size):
                    some = judged[first : first + batch_size]
                    made.append((some, *classifier.look(make_view(VIEWS[name], scene, some))))
                    done += len(some)
                    if progress:
                        progress(done, total)
            scores[name] = _gather(made, len(scene.greys))
            writer = ArrayWriter(folder, _ANSWERS, total=len(scene.greys), token=fingerprint)
            if writer.rows < len(scene.greys):
                writer.append({"features": scores[name].features, "scores": scores[name].scores})
            writer.finish(manifest, facts={"view": name}, fingerprint=fingerprint)
        if progress:
            progress(done, total)
    return scores


def _shown(name: str, scene: Scene) -> Ints:
    """Rows of which this view can be made."""
    view = VIEWS[name]
    usable = scene.lungs.any(axis=(1, 2)) if view.needs_lungs else np.ones(len(scene.greys), dtype=bool)
    if view.fill in {"same", "other"}:  # they are compared with each other
        usable = usable & (scene.same >= 0) & (scene.other >= 0)
    elif "any" in FILLS.get(view.fill, (view.fill,)):
        usable = usable & (scene.any >= 0)
    rows = np.flatnonzero(usable)
    most = min(view.most or len(rows), len(rows))
    return rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(np.int64))]


def _gather(made: Sequence[tuple[Ints, Any, Any]], count: int) -> ViewScores:
    features = np.full((count, made[0][1].shape[1]), np.nan, dtype=np.float32)
    scores = np.full((count, made[0][2].shape[1]), np.nan, dtype=np.float64)
    for rows, *block in made:
        features[rows], scores[rows] = block
    return ViewScores(features, scores)
