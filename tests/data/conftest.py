"""What tests of the class differences share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sklearn.ensemble


@pytest.fixture(scope="module")
def small_forest() -> Iterator[None]:
    """A twentieth of the trees of the forest on all columns, which take most of the time of `class_differences`."""
    whole = sklearn.ensemble.RandomForestClassifier

    def smaller(trees: int, **settings: Any) -> sklearn.ensemble.RandomForestClassifier:
        assert trees == 200
        return whole(10, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.ensemble, "RandomForestClassifier", smaller)
        yield
