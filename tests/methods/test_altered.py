"""Partners of swapped backgrounds: of other patients, of the right class, and never known to the classifier that is asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.methods.altered import choose_partners


@examples(50)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_partners_are_strangers_of_the_same_part(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    target, groups, part = (rng.integers(0, high, count).astype(np.int64) for high in (3, 20, 3))
    usable = rng.random(count) < 0.8
    same, other, any_ = choose_partners(target, groups, part, usable, seed=seed)
    for row in range(count):
        strangers = usable & (groups != groups[row]) & (part == part[row])
        for chosen, wanted in (
            (same, strangers & (target == target[row])), (other, strangers & (target != target[row])), (any_, strangers),
        ):  # fmt: skip
            assert (chosen[row] >= 0) == wanted.any()
            assert chosen[row] < 0 or wanted[chosen[row]]


def test_every_stranger_is_chosen_at_times() -> None:
    target, groups, part = np.zeros(9, np.int64), np.arange(9), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    seen = {int(choose_partners(target, groups, part, np.ones(9, bool), seed=s)[0][0]) for s in range(60)}
    assert seen == {1, 2, 3}
