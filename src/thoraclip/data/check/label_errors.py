"""Suspected label errors, from predictions of classifiers that did not see the image: confident learning by cleanlab.

Northcutt, Jiang & Chuang 2021, "Confident learning: estimating uncertainty in dataset labels" (JAIR 70): the number of
wrong labels between each two classes is estimated from the scores that reach the mean score of a class on its own
images, and as many images with the largest margin are listed (section 3.2, prune by noise rate).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints
from thoraclip.errors import ManifestError, MismatchError
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["label_errors"]

_FACTS = ("image_id", "path", "label", "patient", "split", "fold")


def _suspects(target: Ints, scores: Floats) -> list[int]:
    """Rows whose label i64[N] is suspected by probabilities f64[N, C], the lowest score of the own label first; none
    where all are of one class, which nothing can be compared with."""
    if len(np.unique(target)) < 2:
        return []
    from cleanlab.filter import find_label_issues  # brings pandas, a second to load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few images
        rows = find_label_issues(target, scores, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(row) for row in rows]


def label_errors(manifest: Manifest, tables: Sequence[Predictions], name: str) -> dict[str, Any]:
    """Suspected label errors of a manifest, as a part of `check.json`.

    Images of split `train` in the predictions are left out: a classifier has learned their labels. The labels are the
    manifest's. Scores of an image that stands in several tables (seeds) are averaged.

    Args:
        manifest: the images; matched by image id.
        tables: predictions of the same classes.
        name: of the runs or files that they are from.

    Raises:
        MismatchError: the tables differ in their classes.
        ManifestError: no labelled image of the manifest has a prediction that counts.
    """
    labels = tables[0].labels
    if any(table.labels != labels for table in tables):
        raise MismatchError(f"{name}: their classes differ; name predictions of the same classes")
    scores: dict[str, list[Floats]] = {}
    then: dict[str, str] = {}
    for table in tables:
        for image, split, target, row in zip(table.image_id, table.split, table.target, table.scores, strict=True):
            if split != "train":
                scores.setdefault(image, []).append(row)
                if target >= 0:
                    then[image] = labels.names[target]
    rows = manifest.table.select(_FACTS).to_pylist()
    judged = [row for row in rows if row["image_id"] in scores and row["label"] in labels.names]
    if not judged:
        other = "no prediction of a labelled image of this manifest; name a run on it"
        learned = "predictions of training images alone, whose labels the classifier has learned; name held-out ones"
        raise ManifestError(f"{name}: {other if scores else learned}")
    own = np.array([labels.index(row["label"]) for row in judged], dtype=np.int64)
    means = np.stack([np.mean(scores[row["image_id"]], axis=0) for row in judged])
    suspected = [
        {
            **judged[row],
            "suggested": labels.names[int(means[row].argmax())],
            "score_of_label": round(float(means[row, own[row]]), 4),
            "score_of_suggested": round(float(means[row].max()), 4),
        }
        for row in _suspects(own, means)
    ]
    between = Counter((row["label"], row["suggested"]) for row in suspected)
    return {
        "predictions": name,
        "images": len(judged),
        "agreement": round(float((means.argmax(axis=1) == own).mean()), 4),
        "without_prediction": len(rows) - len(judged),
        "other_labels": [
            {"image_id": row["image_id"], "label": row["label"], "label_then": then[row["image_id"]]}
            for row in judged
            if then.get(row["image_id"], row["label"]) != row["label"]
        ],
        "between": [
            {"label": label, "suggested": suggested, "images": count}
            for (label, suggested), count in sorted(between.items(), key=lambda item: (-item[1], item[0]))
        ],
        "suspected": suspected,
    }
