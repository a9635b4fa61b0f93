"""Checks of documents name the value at fault, the rule and the remedy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thoraclip.errors import InputError, ModelError
from thoraclip.shapes import check, mapping, number, one_of, optional, sequence, table, text, whole

SHAPE = table(
    name=text, size=whole(1, 9), share=optional(number(0, 1)), kinds=sequence(one_of("a", 1), 1, 3, unique=True),
    deep=mapping(table(n=number())), free=whole(), may=["free"],
)  # fmt: skip
GOOD = {"name": "x", "size": 9, "share": None, "kinds": ["a", 1], "deep": {"é": {"n": -1.5}}, "other": 1}

WRONG = [
    ({"name": ""}, "name = '': text on one line"),
    ({"name": "a\nb"}, r"name = 'a\\nb': text on one line"),
    ({"name": "x" * 5000}, "name = 'x{79}[.]{3}: text"),
    ({"size": True}, "size = True: a whole number from 1 to 9 is needed"),
    ({"size": 1.0}, "size = 1.0: a whole"),
    ({"size": 10}, "size = 10: a whole"),
    ({"size": None}, "size = None: a whole"),
    ({"share": float("nan")}, "share = nan: a number from 0 to 1 is needed"),
    ({"share": 10**99}, "share = 10{58}"),
    ({"share": "0.5"}, "share = '0.5'"),
    ({"kinds": []}, r"kinds = a list of 0: a list of 1 to 3 is needed"),
    ({"kinds": ["a", True]}, r"kinds\[1\] = True: one of \['a', 1\]"),
    ({"kinds": ["a", "a"]}, "kinds = a list of 2: a list without repetitions"),
    ({"kinds": "a"}, "kinds = 'a': a list"),
    ({"deep": {"q": {"n": "1"}}}, r"deep\.q\.n = '1': a number is needed"),
    ({"deep": {"q": {"n": float("inf")}}}, r"deep\.q\.n = inf: a number is needed"),
    ({"deep": {"q": {}}}, r"deep\.q\.n = nothing: a value is needed"),
    ({"deep": []}, "deep = a list of 0: a table"),
    ({"free": -1}, "free = -1: a whole number of 0 or more is needed"),
]


def test_a_good_document_passes():
    check(GOOD, SHAPE, "x")


@pytest.mark.parametrize(("change", "rule"), WRONG)
def test_the_value_is_named(change, rule):
    with pytest.raises(ModelError, match=f"^x.json: {rule}.*; get it again$"):
        check(GOOD | change, SHAPE, "x.json", error=ModelError, remedy="get it again")


any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@given(any_value, st.sampled_from([*GOOD, None]))
def test_any_value_passes_or_is_one_line(value, at):
    try:
        check(value if at is None else GOOD | {at: value}, SHAPE, "x")
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 400
