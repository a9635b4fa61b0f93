"""The quantile of patients: a slow oracle, and what new patients get on average."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.posthoc.quantile import patient_quantile, patients_needed


@examples(100)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 14)), min_size=1, max_size=60),
    st.sampled_from(["1/2", "2/3", "3/4", "9/10"]),
)
def test_it_equals_a_slow_oracle(rows: list[tuple[int, int]], level: str) -> None:
    values, patients = (np.array(column) for column in zip(*rows, strict=True))
    of = {p: [int(v) for v, q in zip(values, patients, strict=True) if q == p] for p in set(patients.tolist())}
    wanted, fits = Fraction(level) * (len(of) + 1), []
    for v in sorted(set(values.tolist())):
        if sum(Fraction(sum(x <= v for x in own), len(own)) for own in of.values()) >= wanted:
            fits.append(v)
    found = patient_quantile(values.astype(float), patients, float(Fraction(level)))
    assert found == (fits[0] if fits else math.inf)
    assert (found == math.inf) == (len(of) < patients_needed(float(Fraction(level))))


@pytest.mark.parametrize(("patients", "each", "level"), [(30, 10, 0.9), (30, 10, 0.95), (60, 1, 0.9)])
def test_new_patients_lie_below_it_as_often_as_asked(patients: int, each: int, level: float) -> None:
    """Images of one patient have 80 % of their variance in common."""
    rng, kept = np.random.default_rng(1), []
    new = np.sort(rng.normal(size=50_000))
    for _ in range(400):
        common = rng.normal(size=patients).repeat(each)
        values = np.sqrt(0.8) * common + np.sqrt(0.2) * rng.normal(size=len(common))
        limit = patient_quantile(values, np.arange(patients).repeat(each), level)
        kept.append(np.searchsorted(new, limit, side="right") / len(new))
    assert level - 0.012 <= np.mean(kept) <= level + 1 / (patients + 1) + 0.012
