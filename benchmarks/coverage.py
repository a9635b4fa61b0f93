"""Coverage of intervals, false alarms and power of comparisons, and promises kept, where the truth is known.

    python benchmarks/coverage.py [TABLE ...] [--sets 400]

Every table simulates scores (`Training`) and asks the package's own functions; docs/statistics.md has what it prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import InputError
from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.compare import COMPARED, METHODS, Contestant, compare, t_test
from thoraclip.evaluation.entries import mean_clusters, training_values
from thoraclip.evaluation.intervals import estimate, percentile_interval
from thoraclip.evaluation.learning_curve import FewShot, Judge, curve_points
from thoraclip.evaluation.metrics import METRICS, Scored
from thoraclip.evaluation.resampling import replicate
from thoraclip.evaluation.trainings import training_variance
from thoraclip.labels import LabelSet
from thoraclip.posthoc.conformal import fit_thresholds
from thoraclip.posthoc.ood import threshold_of
from thoraclip.posthoc.operating import chance_of_goal, choose_threshold, positives_needed
from thoraclip.posthoc.scaling import PATIENTS_NEEDED, fit_temperature
from thoraclip.proportions import patient_share, wilson

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SHARES = np.array([0.4, 0.35, 0.25])
_MAIN = "macro_f1"


@dataclass(frozen=True)
class Training:
    """An algorithm: its classifiers differ in how good they are, by a shift of each class, and by noise of each image.

    Args:
        ease: mean of how much higher the true class scores, in logits; its spread over images is 1.5.
        quality: standard deviation of `ease` over trainings.
        shift: the same of what is added to a class. Both together move macro F1 by about 1.7 points.
        noise: the same for an image and class.
        alike: share of the variance of `ease` that images of one patient have in common.
        odd: share of images that look like another class, as a wrong label does.
    """

    ease: float = 1.6
    quality: float = 0.07
    shift: float = 0.2
    noise: float = 0.7
    alike: float = 0.0
    odd: float = 0.0

    def images(self, rng: np.random.Generator, patients: int, each: int = 1) -> tuple[Ints, Floats, Ints]:
        """(class, ease, patient) of N images; a patient has one class."""
        owners = np.repeat(np.arange(patients), each)
        target = rng.choice(3, patients, p=_SHARES)[owners]
        common, own = rng.normal(size=patients)[owners], rng.normal(size=len(owners))
        ease = self.ease + 1.5 * (np.sqrt(self.alike) * common + np.sqrt(1 - self.alike) * own)
        return target, np.where(rng.random(len(owners)) < self.odd, -ease, ease), owners

    def scores(self, rng: np.random.Generator, target: Ints, ease: Floats) -> Scored:
        """Of one classifier."""
        logits = np.eye(3)[target] * (ease + self.quality * rng.normal())[:, None] + self.shift * rng.normal(size=3)
        logits += self.noise * rng.normal(size=logits.shape)
        return Scored(target, np.exp(logits - logits.max(axis=1, keepdims=True)))

    def cross_validated(self, rng: np.random.Generator, target: Ints, ease: Floats, fold_of: Ints) -> Scored:
        """Every fold by a classifier of its own."""
        scores = np.zeros((len(target), 3))
        for fold in np.unique(fold_of):
            rows = fold_of == fold
            scores[rows] = self.scores(rng, target[rows], ease[rows]).scores
        return Scored(target, scores)

    def truth(self, names: Sequence[str]) -> dict[str, float]:
        """What its classifiers score on average on all images there could be."""
        return dict(_truth(self, tuple(names)))


@cache
def _truth(algorithm: Training, names: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    rng, found = np.random.default_rng(99), []
    for _ in range(150):
        target, ease, _ = algorithm.images(rng, 4000)
        found.append([METRICS[name].point(algorithm.scores(rng, target, ease)) for name in names])
    return tuple(zip(names, np.mean(np.array(found, dtype=np.float64), axis=0).tolist(), strict=True))


def _experiments(
    a: Training, b: Training, images: int, seeds: int, folds: int, sets: int, resamples: int
) -> Iterator[tuple[dict[str, Any], list[Contestant], Ints, Scored]]:
    """(the comparison by macro F1, both methods, the images' folds, a table) of each set."""
    for number in range(sets):
        rng = np.random.default_rng([images, seeds, folds, number])
        target, ease, _ = a.images(rng, images)
        fold_of, groups = rng.permutation(images) % folds, np.arange(images)
        pair = []
        for algorithm in (a, b):
            more = algorithm.ease - a.ease
            pair.append([algorithm.cross_validated(rng, target, ease + more, fold_of) for _ in range(seeds)])
        drawn = replicate(pair[0] + pair[1], groups, resamples=resamples, seed=number, names=COMPARED)
        parts, contestants = (drawn[:seeds], drawn[seeds:]), []
        for name, tables, own in zip("ab", pair, parts, strict=True):
            values = {m: float(np.mean([METRICS[m].point(t) or 0.0 for t in tables])) for m in COMPARED}
            replicates = {m: np.mean([one.headline[m] for one in own], axis=0) for m in COMPARED}
            contestants.append(Contestant(name, values, replicates, None, training_values(tables, fold_of, COMPARED)))
        rows = compare(contestants, intervals=True, groups=groups)
        yield next(row for row in rows if row["metric"] == _MAIN), contestants, fold_of, pair[0][0]


def _interval(one: Contestant, table: Scored, groups: Ints) -> tuple[float, float]:
    clusters = mean_clusters(table.target, groups)
    training = training_variance(one.trainings[_MAIN])
    found = estimate(one.values[_MAIN], one.replicates[_MAIN], clusters=clusters, training=training)
    assert found.low is not None and found.high is not None
    return found.low, found.high


def false_alarms(
    algorithm: Training, *, images: int, seeds: int, folds: int, sets: int, resamples: int
) -> tuple[float, float]:
    """Of two equal algorithms: how often they are called different, and how often the interval of one holds its own
    macro F1."""
    truth, called, covered = algorithm.truth([_MAIN])[_MAIN], 0, 0
    for row, (one, _), _, table in _experiments(algorithm, algorithm, images, seeds, folds, sets, resamples):
        called += row["p"] < 0.05 and row["claim"] == METHODS
        low, high = _interval(one, table, np.arange(images))
        covered += low <= truth <= high
    return called / sets, covered / sets


def differences(sets: int) -> None:
    """Two equal algorithms."""
    algorithm = Training()
    truth = algorithm.truth([_MAIN])[_MAIN]
    _row("design", "called different: patients only", "now", "own macro F1 covered: patients only", "now")
    for images, seeds, folds in ((1000, 1, 1), (1000, 2, 1), (1000, 3, 1), (6000, 3, 1), (6000, 5, 1), (300, 1, 3),
                                 (300, 1, 5), (1000, 1, 5), (1000, 3, 5)):  # fmt: skip
        before, now, inside = 0, 0, np.zeros(2)
        for row, (one, other), _, table in _experiments(algorithm, algorithm, images, seeds, folds, sets, 300):
            low, high = percentile_interval(one.replicates[_MAIN] - other.replicates[_MAIN])
            before += not low <= 0 <= high
            now += row["p"] < 0.05 and row["claim"] == METHODS
            spans = percentile_interval(one.replicates[_MAIN]), _interval(one, table, np.arange(images))
            inside += [low <= truth <= high for low, high in spans]
        told = f"{now / sets:.3f}" if seeds * folds > 1 else "no claim"
        name = f"{images:,} images, {seeds} seed{'s' * (seeds > 1)}" + (f", {folds} folds" if folds > 1 else "")
        _row(name, f"{before / sets:.3f}", told, *(f"{share:.3f}" for share in inside / sets))


def few(sets: int) -> None:
    """Two equal classifiers that are not trained, on few patients of ten images each."""
    _row("patients", "called different: percentiles", "now")
    for patients in (2, 4, 8, 16, 30, 100):
        algorithm, called = Training(alike=0.7), np.zeros(2)
        for number in range(sets):
            rng = np.random.default_rng([patients, number])
            target, ease, groups = algorithm.images(rng, patients, 10)
            tables = [algorithm.scores(rng, target, ease + own[groups]) for own in 1.5 * rng.normal(size=(2, patients))]
            drawn = replicate(tables, groups, resamples=300, seed=number, names=COMPARED)
            pair = []
            for name, table, one in zip("ab", tables, drawn, strict=True):
                values = {m: METRICS[m].point(table) or 0.0 for m in COMPARED}
                nothing = {m: np.zeros((1, 1)) for m in COMPARED}
                pair.append(Contestant(name, values, one.headline, None, nothing, trained=False))
            low, high = percentile_interval(pair[0].replicates["accuracy"] - pair[1].replicates["accuracy"])
            row = compare(pair, intervals=True, groups=groups)[0]
            called += [not low <= 0 <= high, row["p"] < 0.05]
        _row(f"{patients}", *(f"{share:.3f}" for share in called / sets))


def power(sets: int) -> None:
    """A real difference."""
    _row("design", "difference (points)", "found", "Nadeau & Bengio alone")
    designs = ((1000, 3, 1, 0.25), (1000, 5, 1, 0.25), (6000, 3, 1, 0.15), (6000, 5, 1, 0.15), (300, 1, 3, 0.4),
               (300, 1, 5, 0.4), (1000, 1, 5, 0.3), (1000, 3, 5, 0.3))  # fmt: skip
    for images, seeds, folds, gain in designs:
        a, b = Training(ease=1.6 + gain), Training()
        lead, found, alone = a.truth([_MAIN])[_MAIN] - b.truth([_MAIN])[_MAIN], 0, 0
        for row, (one, other), _, _ in _experiments(a, b, images, seeds, folds, sets, 300):
            found += row["p"] < 0.05
            spread = training_variance((one.trainings[_MAIN].mean(0) - other.trainings[_MAIN].mean(0))[None])
            alone += spread is not None and t_test(row["difference"], spread) < 0.05
        name = f"{images:,} images, {seeds} seed{'s' * (seeds > 1)}" + (f", {folds} folds" if folds > 1 else "")
        _row(name, f"{100 * lead:.1f}", f"{found / sets:.2f}", f"{alone / sets:.2f}" if folds > 1 else "-")


def ceiling(sets: int) -> None:
    """One classifier, from poor to nearly perfect: how often the interval holds what it scores on all images."""
    names = ("accuracy", "macro_f1", "auroc", "average_precision")
    _row("true accuracy", "odd", "patients x images", *(f"{METRICS[n].title}: percentiles, logit, now" for n in names))
    designs = [(ease, odd, size) for ease, odd in ((0.3, 0), (1.6, 0), (3.2, 0), (4.5, 0), (5.0, 0), (3.2, 0.005),
               (4.5, 0.005), (4.5, 0.02)) for size in ((300, 1), (60, 5))]  # fmt: skip
    for ease, odd, (patients, each) in designs:
        algorithm = Training(ease=ease, quality=0, shift=0, alike=0.0 if each == 1 else 0.5, odd=odd)
        truth, inside = algorithm.truth(names), np.zeros((len(names), 3))
        for number in range(sets):
            rng = np.random.default_rng([patients, number])
            target, hard, owners = algorithm.images(rng, patients, each)
            table = algorithm.scores(rng, target, hard)
            (drawn,) = replicate([table], owners, resamples=300, seed=number)
            for place, name in enumerate(names):
                value, known = METRICS[name].point(table), drawn.headline[name]
                clusters = mean_clusters(target, owners) if METRICS[name].by_class else float(patients)
                found = estimate(value, known, clusters=clusters)
                if value is None or found.low is None or found.high is None:
                    continue
                spans = percentile_interval(known), _logit(value, known), (found.low, found.high)
                inside[place] += [low <= truth[name] <= high for low, high in spans]
        cells = (", ".join(f"{share:.3f}" for share in row) for row in inside / sets)
        _row(f"{truth['accuracy']:.3f}", f"{100 * odd:.1f} %", f"{patients} x {each}", *cells)


def _logit(value: float, drawn: Floats) -> tuple[float, float]:
    """The usual alternative near 1: symmetric on the scale of the logit."""
    if not 0 < value < 1:
        return percentile_interval(drawn)
    reach = 1.96 * float(drawn.std(ddof=1)) / (value * (1 - value))
    low, high = (1 / (1 + np.exp(-(np.log(value / (1 - value)) + sign * reach))) for sign in (-1, 1))
    return float(low), float(high)


def shares(sets: int) -> None:
    """A share of images (sensitivity, set coverage, a reliability bin) where images of a patient are alike."""
    _row("true share", "patients x images", "Wilson, by image", "by patient")
    for truth in (0.5, 0.9, 0.95, 0.98):
        for patients, each in ((300, 1), (100, 3), (30, 10)):
            concentration = np.array([truth, 1 - truth]) * 1.5
            owners, inside, rng = np.repeat(np.arange(patients), each), np.zeros(2), np.random.default_rng(patients)
            for _ in range(sets):
                right = rng.random(len(owners)) < rng.beta(*concentration, size=patients)[owners]
                spans = wilson(int(right.sum()), len(right)), patient_share(right, owners)
                inside += [low <= truth <= high for low, high in spans]
            _row(f"{truth}", f"{patients} x {each}", *(f"{share:.3f}" for share in inside / sets))


def promises(sets: int) -> None:
    """What new patients' images get on average: the rule over images, and the one over patients."""
    algorithm = Training(alike=0.8)
    rules: dict[str, Callable[[Floats, Ints | None], float]] = {
        "sets hold 90 %": _kept_by_sets, "sensitivity 95 %": _kept_by_threshold, "not flagged 99 %": _kept_by_flag,
    }  # fmt: skip
    rng = np.random.default_rng(3)
    new = np.sort(algorithm.ease + 1.5 * rng.normal(size=200_000))
    _row("promise", "patients x images", "over images: kept on average", "over patients", "chance that the goal is met")
    for name, rule in rules.items():
        for patients, each in ((20, 1), (50, 1), (30, 10), (100, 5), (200, 3)):
            kept = np.zeros((sets, 2))
            for number in range(sets):
                _, ease, owners = algorithm.images(rng, patients, each)
                for column, of in enumerate((None, owners)):
                    kept[number, column] = 1 - np.searchsorted(new, rule(ease, of)) / len(new)
            met = (kept[:, 1] >= 0.95).mean()
            told = f"{met:.2f} (stated: {chance_of_goal(patients):.2f})" if name.startswith("sens") else "-"
            enough = patients >= positives_needed() or name.startswith("sets")
            _row(name, f"{patients} x {each}", *(f"{v:.3f}" for v in kept.mean(axis=0)), told if enough else "-")


def temperature(sets: int) -> None:
    """What a fitted temperature does on new patients; where it reaches its bound, there is none."""
    algorithms = [Training(ease=ease, quality=0, shift=0, alike=0.8) for ease in (1.6, 3.2)]
    names = (f"accuracy {a.truth(['accuracy'])['accuracy']:.2f}" for a in algorithms)
    _row("too sure", "patients", *(f"{n}: {what}" for n in names for what in ("log-loss, after", "ECE, after", "none")))
    for factor in (1.0, 1.5, 2.5):
        for patients in (5, 10, 20, 30, 50, 100):
            cells: list[str] = []
            for algorithm in algorithms:
                before, after, none = with_temperature(algorithm, factor, patients, sets)
                losses, errors = zip(before, after, strict=True)
                cells += ["{:.3f}, {:.3f}".format(*losses), "{:.1f}, {:.1f} %".format(*(100 * e for e in errors))]
                cells.append(f"{100 * none:.0f} %")
            _row(f"{factor} x", str(patients), *cells)


def with_temperature(algorithm: Training, factor: float, patients: int, sets: int) -> tuple[Floats, Floats, float]:
    """(log-loss and calibration error of a classifier that is too sure by a factor, the same after a fit on so many
    patients, on average, share of fits that reach a bound)."""
    rng, metrics = np.random.default_rng(0), ("log_loss", "ece")
    plain = algorithm.scores(rng, *algorithm.images(rng, 6000)[:2])
    power = factor / fit_temperature(plain.scores, plain.target).temperature
    new = Scored(plain.target, plain.scores**power)
    before = np.array([METRICS[name].point(new) for name in metrics], dtype=np.float64)
    after, none = np.tile(before, (sets, 1)), 0
    for number in range(sets):
        rng = np.random.default_rng([patients, number])
        val = algorithm.scores(rng, *algorithm.images(rng, patients)[:2])
        # each image several times is the same fit, and never too few patients
        many = (np.repeat(part, PATIENTS_NEEDED, axis=0) for part in (val.scores**power, val.target))
        try:
            scaled = Scored(new.target, fit_temperature(*many).apply(new.scores))
        except InputError:
            none += 1
            continue
        after[number] = [METRICS[name].point(scaled) for name in metrics]
    return before, after.mean(axis=0), none / sets


@dataclass(frozen=True)
class FewShotStudy:
    """A study of nearest class means, on features whose classes, patients and images are normal.

    Args:
        pool: training patients of each of three classes; with folds, of all folds together.
        folds: K; 1 for a test set of its own.
        test: test patients of each class, without folds.
        draws: D.
        shots: k, ascending.
    """

    pool: tuple[int, int, int] = (40, 60, 100)
    folds: int = 1
    test: int = 60
    draws: int = 3
    shots: tuple[int, ...] = (1, 4, 16, 32)

    def patients(self, rng: np.random.Generator, each: Sequence[int]) -> tuple[Ints, Floats]:
        """(class of every patient, f64[P, 2, 8] features of two images of each)."""
        label = np.repeat(np.arange(3), each)
        centre = 0.9 * np.eye(8)[label] + rng.normal(scale=0.7, size=(len(label), 8))
        return label, centre[:, None] + rng.normal(scale=0.7, size=(len(label), 2, 8))

    def trained(self, rng: np.random.Generator, label: Ints, x: Floats) -> list[Floats]:
        """f64[3, 8] class means of a nested draw, for each number of shots."""
        order = [rng.permutation(np.flatnonzero(label == c)) for c in range(3)]
        return [np.stack([x[one[:k]].mean(axis=(0, 1)) for one in order]) for k in self.shots]

    def predicted(self, means: Floats, x: Floats) -> Floats:
        """f64[2 P, 3] scores of the images."""
        scores: Floats = np.exp(x.reshape(-1, 8) @ means.T - 0.5 * (means**2).sum(axis=1))
        return scores

    @cache  # noqa: B019, a handful of frozen studies
    def truth(self) -> Floats:
        """f64[S] macro F1 on all images that there could be, the mean over all trainings."""
        rng, found = np.random.default_rng(99), []
        for _ in range(1000):
            label, x = self.patients(rng, (200,) * 3)
            means = self.trained(rng, *self.patients(rng, (self.shots[-1],) * 3))
            found.append([METRICS[_MAIN].point(Scored(np.repeat(label, 2), self.predicted(m, x))) for m in means])
        return np.asarray(np.mean(np.array(found, dtype=np.float64), axis=0))

    def simulated(self, number: int) -> tuple[dict[tuple[str, int | str], list[Scored]], FewShot, Aligned]:
        """(a table for each draw of each number of shots, and what the learning curve is told) of one study."""
        rng = np.random.default_rng([*self.pool, self.folds, self.draws, number])
        label, x = self.patients(rng, self.pool)
        parts: list[tuple[Ints, Ints | None]] = [(np.arange(len(label)), None)]
        if self.folds > 1:
            fold_of = np.concatenate([rng.permutation(count) % self.folds for count in self.pool])
            parts = [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(self.folds)]
            test, seen = label, x
        else:
            fold_of = np.zeros(3 * self.test, dtype=np.int64)
            test, seen = self.patients(rng, (self.test,) * 3)
        target, tables = np.repeat(test, 2), dict[tuple[str, int | str], list[Scored]]()
        for _ in range(self.draws):
            scores = np.zeros((len(self.shots), len(target), 3))
            for train, held_out in parts:
                rows = slice(None) if held_out is None else np.isin(np.repeat(np.arange(len(test)), 2), held_out)
                for place, means in enumerate(self.trained(rng, label[train], x[train])):
                    scores[place, rows] = self.predicted(means, seen if held_out is None else seen[held_out])
            for shots, one in zip(self.shots, scores, strict=True):
                tables.setdefault(("m", shots), []).append(Scored(target, one))
        patients = {name: min(int((label[train] == c).sum()) for train, _ in parts) for c, name in enumerate("abc")}
        few = FewShot(runs={}, draws=self.draws, unit="patient", patients=patients, labelled=patients, with_all=False)
        ids, groups = tuple(map(str, range(len(target)))), np.repeat(np.arange(len(test)), 2)
        folds = tuple(range(self.folds)) if self.folds > 1 else ()
        return tables, few, Aligned(LabelSet(("a", "b", "c")), ids, target, groups, "patient", {}, (),
                                    np.repeat(fold_of, 2), folds, {})  # fmt: skip


def covered_by_curves(study: FewShotStudy, *, sets: int, resamples: int = 200) -> tuple[Floats, Floats, Floats]:
    """How often the truth lies in the interval of each point f64[S] and gain f64[S - 1]; and in that of each point
    without `draw_variance`, f64[S]."""
    truth, inside = study.truth(), [np.zeros(len(study.shots) - missing) for missing in (0, 1, 0)]
    for number in range(sets):
        tables, few, aligned = study.simulated(number)
        judge = Judge(few, aligned, None)
        points = list(curve_points(tables, few, aligned, resamples=resamples, seed=number).values())
        found = [judge.point(point, None) for point in points]
        gains = [judge.gain(a, b) for a, b in pairwise(points)]
        alone = [judge.point(replace(point, training=None), None) for point in points]
        for share, rows, true in zip(inside, (found, gains, alone), (truth, np.diff(truth), truth), strict=True):
            share += [row["low"] <= value <= row["high"] for row, value in zip(rows, true, strict=True)]
    return inside[0] / sets, inside[1] / sets, inside[2] / sets


def learning(sets: int) -> None:
    """Points and gains of a learning curve: 1, 4, 16 and 32 patients of each class, three draws where not said."""
    _row("design", "true macro F1", "points covered", "gains covered", "points, test patients only")
    designs = {
        "40, 60 and 100 patients to draw from": FewShotStudy(),
        "the same, 5 draws": FewShotStudy(draws=5),
        "400 of each class": FewShotStudy(pool=(400, 400, 400)),
        "36 of each class": FewShotStudy(pool=(36, 36, 36)),
        "60 of each class, 3 folds": FewShotStudy(pool=(60, 60, 60), folds=3),
        "1,000 test patients of each class": FewShotStudy(pool=(400, 400, 400), test=1000),
    }
    for name, study in designs.items():
        points, gains, alone = covered_by_curves(study, sets=sets)
        told = (", ".join(f"{share:.3f}" for share in row) for row in (study.truth(), points, gains, alone))
        _row(name, *told)


def _kept_by_sets(ease: Floats, owners: Ints | None) -> float:
    """The lowest ease whose class is in the set."""
    score = 1 / (1 + np.exp(-ease))
    found = fit_thresholds(np.stack([score, 1 - score], axis=1), np.zeros(len(ease), np.int64), patients=owners)
    limit = 1 - found.threshold[0]
    return float(np.log(limit / (1 - limit))) if 0 < limit < 1 else -np.inf


def _kept_by_threshold(ease: Floats, owners: Ints | None) -> float:
    found = choose_threshold(ease, np.ones(len(ease), dtype=bool), patients=owners)
    return -np.inf if found is None else found


def _kept_by_flag(ease: Floats, owners: Ints | None) -> float:
    return -threshold_of(-ease, 0.01, owners)


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


TABLES: dict[str, Callable[[int], None]] = {
    one.__name__: one for one in (differences, few, power, ceiling, shares, promises, temperature, learning)
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--sets", type=int, default=400)
    given = parser.parse_args()
    for name in given.tables or TABLES:
        print(f"\n{name}: {TABLES[name].__doc__}\n")
        TABLES[name](given.sets)
