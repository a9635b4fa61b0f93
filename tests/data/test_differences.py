"""What tells the classes apart: planted confounders are found, noise is not, and groups never leak."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.tree import DecisionTreeClassifier

from thoraclip.data import differences
from thoraclip.data.differences import TOGETHER
from thoraclip.data.splits import assign_groups
from thoraclip.errors import ConfigError

pytestmark = pytest.mark.usefixtures("small_forest")

Row = dict[str, Any]
class_differences = partial(differences.class_differences, descriptions={})

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def made_up(patients: int = 150, images: int = 2, seed: int = 0) -> tuple[npt.NDArray[np.int64], list[str], list[str]]:
    """Target, labels and patients: every patient has one class and the same number of images."""
    patient = np.repeat(np.arange(patients), images)
    target = np.random.default_rng(seed).permutation(np.arange(patients) % 3)[patient]
    return target, [CLASSES[t] for t in target], [f"p{p}" for p in patient]


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row["name"]: row for row in rows}


def value(row: Row) -> float:
    return float(row["alone"]["value"])


def test_planted_confounders_stand_at_the_top_and_noise_at_chance() -> None:
    target, labels, groups = made_up()
    rng = np.random.default_rng(1)
    numeric = {
        "planted": target + rng.normal(0, 0.1, len(target)),
        "weak": target + rng.normal(0, 2.0, len(target)),
        "noise": rng.normal(size=len(target)),
        "constant": np.ones(len(target)),
    }
    views = np.array(["AP", "PA", "supine"])[target]
    swapped = np.where(rng.uniform(size=len(target)) < 0.03, "AP", views)
    categorical = {"view": swapped.tolist(), "sex": rng.choice(["F", "M"], len(target)).tolist()}
    rows = class_differences(labels, groups, numeric, categorical, seed=0, descriptions={"planted": "mm"})
    assert [row["name"] for row in rows[:4]] == [TOGETHER, "planted", "view", "weak"]
    assert (rows[1]["description"], rows[1]["kind"], rows[1]["reason"]) == ("mm", "numeric", "")
    assert all(value(row) > 0.9 for row in rows[:3])
    for row in rows[4:6]:
        assert row["name"] in {"noise", "sex"}
        assert row["alone"]["low"] - 0.03 <= 1 / 3 <= row["alone"]["high"] + 0.03, row["name"]
    values = [value(row) for row in rows[1:6]]
    assert values == sorted(values, reverse=True)
    assert (rows[6]["name"], rows[6]["alone"], rows[6]["reason"]) == ("constant", None, "one value only")


def test_a_column_that_memorises_patients_does_not_score() -> None:
    """Each patient's own number names the class of the images that were seen, and nothing of an unseen patient."""
    _, labels, groups = made_up(patients=60, images=8)
    number = np.random.default_rng(3).permutation(60)[np.arange(60).repeat(8)]
    patient = [f"id {group}" for group in groups]
    rows = by_name(class_differences(labels, groups, {"number": number}, {"patient": patient}, seed=0))
    assert value(rows[TOGETHER]) < 0.5
    assert value(rows["number"]) < 0.5
    assert value(rows["patient"]) < 0.5
    alone = by_name(class_differences(labels, [str(i) for i in range(len(labels))], {"number": number}, {}, seed=0))
    assert value(alone[TOGETHER]) > 0.9  # without the groups it does


def test_unknown_is_a_value_of_its_own() -> None:
    target, labels, groups = made_up()
    rng = np.random.default_rng(4)
    age = np.where(target == 0, np.nan, rng.normal(50, 10, len(target)))
    infinite = np.where(target == 0, np.inf, 1.0)
    view = [None if t == 0 else "PA" for t in target]
    numeric = {"age_years": age, "infinite": infinite, "never": np.full(len(target), np.nan)}
    rows = by_name(class_differences(labels, groups, numeric, {"view": view, "nothing": [None] * len(target)}, seed=0))
    for name in ("age_years", "infinite", "view"):
        assert value(rows[name]) > 0.6, name  # one class of three is named, the others guessed: 2/3
        assert rows[name]["known"] == {"COVID-19": 0.0, "Non-COVID": 1.0, "Normal": 1.0}
    assert rows["age_years"]["per_class"]["COVID-19"] == {"n": 0, "median": None, "q1": None, "q3": None}
    assert rows["view"]["per_class"]["COVID-19"] == {"n": 0, "shares": {}}
    for name in ("never", "nothing"):
        assert rows[name]["alone"] is None and rows[name]["reason"] == "one value only"


def test_the_shown_numbers_are_those_of_the_class() -> None:
    target, labels, groups = made_up(patients=60)
    numbers = np.arange(len(target), dtype=float)
    numbers[:5] = np.nan
    words = [f"w{i % 7}" if i % 11 else None for i in range(len(target))]
    rows = by_name(class_differences(labels, groups, {"numbers": numbers}, {"words": words}, seed=0))
    for index, label in enumerate(CLASSES):
        own = sorted(v for v, t in zip(numbers, target, strict=True) if t == index and v == v)
        shown = rows["numbers"]["per_class"][label]
        assert shown["n"] == len(own)
        assert shown["median"] == pytest.approx(float(np.median(own)))
        assert shown["q1"] == pytest.approx(float(np.quantile(own, 0.25)))
        assert shown["q3"] == pytest.approx(float(np.quantile(own, 0.75)))
        said = [w for w, t in zip(words, target, strict=True) if t == index and w is not None]
        shares = rows["words"]["per_class"][label]
        assert shares["n"] == len(said) and len(shares["shares"]) == 5
        for word, share in shares["shares"].items():
            assert share == pytest.approx(said.count(word) / len(said))
        assert rows["words"]["known"][label] == pytest.approx(len(said) / labels.count(label))


def test_many_sources_of_one_class_each_are_told_apart() -> None:
    target, labels, groups = made_up(patients=360, images=1)
    source = [f"hospital {t}-{i % 5}" for i, t in enumerate(target)]
    assert value(class_differences(labels, groups, {}, {"source": source}, seed=0)[1]) == 1.0


def test_rare_values_count_as_one_and_unknown_is_none_of_them() -> None:
    words = [f"w{i:02d}" for i in range(25) for _ in range(25 - i)] + [None]
    table = differences._one_hot(words)
    kept = table.any(axis=0)
    assert (table.sum(axis=1) == 1).all()
    assert kept.sum() == differences.MAX_VALUES + 2
    assert sorted(table.sum(axis=0)[kept].tolist())[0] == 1  # the unknown one
    assert table[-2].argmax() == table[words.index("w20")].argmax() != table[-1].argmax()


def test_a_column_scores_as_in_a_slow_cross_validation_and_bootstrap() -> None:
    """Of classes of different size, so that their weights count."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(90), rng.integers(1, 6, 90))
    target = rng.choice(3, 90, p=[0.6, 0.3, 0.1])[group]
    numbers, groups = target + rng.normal(0, 0.8, len(target)), [f"p{g:02d}" for g in group]
    row = class_differences([CLASSES[t] for t in target], groups, {"x": numbers}, {}, seed=3)[1]
    fold = assign_groups(target, groups, [0.2] * 5, seed=3)
    predicted = np.zeros_like(target)
    for held in range(5):
        tree = DecisionTreeClassifier(max_depth=3, class_weight="balanced", random_state=3)
        tree.fit(numbers[fold != held, None], target[fold != held])
        predicted[fold == held] = tree.predict(numbers[fold == held, None])
    draws, slow = np.random.Generator(np.random.PCG64(3)), []
    for _ in range(500):
        images = np.concatenate([np.flatnonzero(group == g) for g in draws.integers(0, 90, 90)])
        if len(set(target[images])) == 3:
            slow.append(np.mean([(predicted[images] == t)[target[images] == t].mean() for t in range(3)]))
    wanted = (balanced_accuracy_score(target, predicted), *np.percentile(slow, (2.5, 97.5)), 1 / 3)
    assert tuple(row["alone"].values()) == pytest.approx(wanted, rel=1e-5)


def test_fewer_rows_are_fitted_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    target, labels, groups = made_up(patients=600)
    numeric = {"planted": target + np.random.default_rng(7).normal(0, 0.1, len(target))}
    monkeypatch.setattr(differences, "MAX_ROWS", 90)
    rows = class_differences(labels, groups, numeric, {}, seed=0)
    assert value(rows[1]) > 0.9
    drawn = differences._draw(np.arange(len(target)), target, 3, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 90 and np.bincount(target[drawn]).tolist() == [30, 30, 30]


def test_the_same_seed_gives_the_same_table_for_any_order_of_columns() -> None:
    target, labels, groups = made_up(patients=60)
    rng = np.random.default_rng(8)
    numeric = {"a": rng.normal(size=len(target)), "b": target + rng.normal(size=len(target))}
    categorical = {"c": rng.choice(["x", "y"], len(target)).tolist()}
    rows = class_differences(labels, groups, numeric, categorical, seed=3)
    turned = class_differences(labels, groups, dict(reversed(numeric.items())), categorical, seed=3)
    assert rows[1:] == turned[1:]
    assert rows != class_differences(labels, groups, numeric, categorical, seed=4)


@pytest.mark.parametrize(
    ("patients", "images", "drop", "reason"),
    [
        (9, 1, 0, "class 'COVID-19' has 3 images of 3 groups; 10 images of 5 groups are needed"),
        (12, 9, 0, "class 'COVID-19' has 36 images of 4 groups; 10 images of 5 groups are needed"),
        (60, 1, 2, "only one class, 'COVID-19'"),
    ],
)
def test_too_few_images_are_described_but_not_measured(patients: int, images: int, drop: int, reason: str) -> None:
    target, labels, groups = made_up(patients, images)
    kept = [i for i, t in enumerate(target) if t < 3 - drop]
    numeric, words = {"z": np.arange(len(kept)), "a": np.arange(len(kept))}, {"k": ["w"] * len(kept)}
    rows = class_differences([labels[i] for i in kept], [groups[i] for i in kept], numeric, words, seed=0)
    assert [row["name"] for row in rows] == [TOGETHER, "a", "k", "z"]
    assert all(row["alone"] is None and row["reason"] == reason for row in rows)
    assert rows[1]["per_class"]["COVID-19"]["n"] > 0


def test_a_negative_seed_is_refused() -> None:
    labels, groups = ["a", "b", "c"] * 10, [str(i) for i in range(30)]
    with pytest.raises(ConfigError, match="seed = -1: a whole number from 0"):
        class_differences(labels, groups, {"x": np.zeros(30)}, {}, seed=-1)
