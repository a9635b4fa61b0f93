"""Class names are merged where that is safe; where it is not, the command to type is said."""

from __future__ import annotations

import re
import shlex
import subprocess
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import ConfigError, ManifestError
from thoraclip.spelling import LabelMap, loose, require_distinct, tidy, tidy_note

SPACES = " \t\n\r\u00a0\u2000\u2003\u202f\u3000\u0085\u2028"
INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\ufeff\u2066\u2069\u061c\ufe0f\0\x1b\x7f\x9b"
names = st.text(
    st.sampled_from("aAzßéÉçñ019-_./+1,;=\u0301\u0308\u212b\uff21ﬁ\u041a\u0414い肺" + SPACES + INVISIBLE)
    | st.characters(exclude_categories=["Cs"]),
    max_size=10,
)


spellings = st.builds(
    lambda word, place, letter, count: tidy(word[:place] + letter + word[place + count :]),
    st.sampled_from(["covid-19", "COVID 19", "Normal", "normal", "viral pneumonia", "1", "1.0"]),
    st.integers(0, 8), st.sampled_from(["", "o", "0", "-", "_"]), st.integers(0, 1),
).filter(bool)  # fmt: skip


def skeleton(text: str) -> str:
    """What the safe rule may not change, worked out in another way: the canonical letters, one space between words."""
    unseen = [
        *range(0x2060, 0x2070),
        *range(0x202A, 0x202F),
        *range(0xFE00, 0xFE10),
        *range(0xFFF9, 0xFFFC),
        0x61C,
        0x180E,
    ]
    unseen += [c for c in [*range(32), *range(0x7F, 0xA0)] if not chr(c).isspace()]
    letters = "".join(c for c in unicodedata.normalize("NFD", text) if c not in INVISIBLE and ord(c) not in unseen)
    return unicodedata.normalize("NFD", re.sub(r"\s+", " ", letters).strip())


@examples(400)
@given(names)
def test_tidying_twice_is_tidying_once(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)
    assert tidy(text) == unicodedata.normalize("NFC", tidy(text)) == tidy(text).strip()


@examples(400)
@given(names, names)
def test_two_names_are_merged_only_by_the_safe_rule(one: str, other: str) -> None:
    assert (tidy(one) == tidy(other)) == (skeleton(one) == skeleton(other))
    assert skeleton(tidy(one)) == skeleton(one)


@examples(200)
@given(names, st.integers(0, 10), st.sampled_from([*SPACES, *INVISIBLE]))
def test_what_cannot_be_seen_makes_no_class(text: str, place: int, added: str) -> None:
    spaced = f"{added}{text}{added}"
    assert tidy(spaced) == tidy(text)
    if added in INVISIBLE:
        assert tidy(text[:place] + added + text[place:]) == tidy(text)
    for form in ("NFC", "NFD"):
        assert tidy(unicodedata.normalize(form, text)) == tidy(text)


@examples(200)
@given(st.dictionaries(names.map(tidy).filter(bool) | spellings, st.integers(1, 99), min_size=1, max_size=6))
def test_the_command_that_is_said_settles_the_question(counts: dict[str, int]) -> None:
    """Whatever is asked: what is typed merges it, in one line, and keeps every other class."""
    for _ in range(9):
        try:
            require_distinct(counts, "t.csv")
            break
        except ManifestError as error:
            assert str(error).startswith("t.csv: one class or several? ") and len(str(error).splitlines()) == 1
            if any("=" in name for name in counts):
                return
            said = str(error).split("add to thoraclip index: ")[-1].partition(" (or, to keep a class apart: ")[0]
            typed = shlex.split(said)[1::2]
            rename = LabelMap(typed)
            rename.require_known(counts)
            assert typed and not rename.kept
            merged = Counter[str]()
            for name, count in counts.items():
                merged[rename(name) or ""] += count
            assert len(merged) < len(counts) and merged.total() == sum(counts.values())
            counts = dict(merged)
    else:
        pytest.fail("the question never ends")
    assert len({loose(name) for name in counts}) == len(counts)


ONE = [
    *(({"COVID": 5, copy: 7}, [f"{copy}=COVID"]) for copy in (
        "COVID (1)", "COVID(2)", "COVID - Copy", "covid - Copy (2)", "COVID copy", "COVID copy 2", "Copy of COVID",
        "Copy (2) of COVID", "COVID - Kopie", "COVID 2",
    )),
    ({"COVID": 5, "Covid": 3}, ["Covid=COVID"]),
    ({"COVID-19": 5, "covid_19": 3, "Covid 19": 1, "COVID19": 1}, ["COVID19=COVID-19", "Covid 19=COVID-19", "covid_19=COVID-19"]),
    ({"COVID\u201319": 5, "COVID-19": 3}, ["COVID-19=COVID\u201319"]),
    ({"1": 5, "1.0": 3, "01": 1}, ["01=1", "1.0=1"]),
    ({"\uff23\uff2f\uff36\uff29\uff24": 1, "COVID": 3}, ["\uff23\uff2f\uff36\uff29\uff24=COVID"]),
    ({"straße": 2, "STRASSE": 3}, ["straße=STRASSE"]),
    ({"Normal": 50, "Nromal": 1}, ["Nromal=Normal"]),
    ({"Normal": 50, "Normals": 20}, ["Normals=Normal"]),
    ({"mass": 5, "masses": 2}, ["masses=mass"]),
    ({"opacities": 5, "Opacity": 2, "ground glass opacity": 1, "Ground-glass opacities": 4},
     ["ground glass opacity=Ground-glass opacities", "Opacity=opacities"]),
    ({"covid": 3, "covid&nbsp;": 3, "covid?": 1, "(covid)": 1}, ["(covid)=covid", "covid&nbsp;=covid", "covid?=covid"]),
    ({"1": 2, "1.0": 2, "\u0661": 2}, ["1.0=1", "\u0661=1"]),  # the plainest of equals
    ({"Nromal": 1, "nromal": 1, "Normal": 50}, ["Nromal=nromal"]),
    ({"Normal": 50, "Normall": 3}, ["Normall=Normal"]),
    ({"Pneumonia": 15, "Pneumona": 2}, ["Pneumona=Pneumonia"]),
    ({"COVID": 15, "\u0421OVID": 2}, ["\u0421OVID=COVID"]),  # a Cyrillic letter
]  # fmt: skip
SEVERAL = [
    {"COVID": 5, "Normal": 5}, {"1": 2, "10": 3, "-1": 2, "1.5": 1}, {"A": 5, "A-": 5, "A+": 5}, {"Type A": 50, "Type B": 1},
    {"grade 1": 50, "grade 2": 1}, {"1-2": 3, "12": 3}, {"mass": 50, "mast": 1},
    {"Effusion": 50, "Infusion": 1}, {"COVID-19": 90, "Non-COVID": 1}, {"BI-RADS 4a": 90, "BI-RADS 4b": 1},
]  # fmt: skip


@pytest.mark.parametrize(("counts", "typed"), ONE)
def test_names_that_may_be_one_are_a_question(counts: dict[str, int], typed: list[str]) -> None:
    with pytest.raises(ManifestError) as caught:
        require_distinct(counts, "m")
    said = str(caught.value)
    assert all(f"'{name}' ({counts[name]})" in said for text in typed for name in text.split("="))
    assert re.findall(r'--label-map "([^"]*)"', said)[:-1] == typed
    require_distinct(counts, "m", kept=[name for name in counts if name != "Normal"])


LOOKS = {
    "a": "\u0430\u03b1\u00e1\uff41", "c": "\u0441\u00e7", "e": "\u0435\u03b5\u00e9", "i": "\u0456\u03b9\u00ec",
    "o": "\u043e\u03bf\u00f6", "p": "\u0440\u03c1", "v": "\u03bd", "m": "\u043c\u039c", "A": "\u0410\u0391", "M": "\u041c",
    "O": "\u041e\u039f", "P": "\u0420", "C": "\u0421", "1": "\u0661\uff11\u0967", "9": "\u0669", "-": "\u2212\u2013",
}  # fmt: skip


@examples(300)
@given(st.data(), st.sampled_from(["covid-19", "COVID", "Normal", "viral pneumonia", "opacity", "-1", "19"]))
def test_what_looks_like_a_class_is_a_question(data: st.DataObject, name: str) -> None:
    """Whatever letters of another script, accents, digits, quotes and stops make the difference, in however many images."""
    like = "".join(data.draw(st.sampled_from(letter + LOOKS.get(letter, ""))) for letter in name)
    around = data.draw(
        st.sampled_from(["{}", "'{}'", "“{}”", "«{}»", "['{}']", '="{}"', "{}.", "#{}", "_{}_", "{}:", "`{}`"])
    )
    written = tidy(around.format(like))
    counts = {name: 50, written: data.draw(st.integers(1, 99)), "other": 50}
    if written == name:
        require_distinct(counts, "t.csv")
    else:
        with pytest.raises(ManifestError, match="one class or several"):
            require_distinct(counts, "t.csv")
        require_distinct(counts, "t.csv", kept=[written])


@pytest.mark.parametrize("evil", ["$(touch x)", "`touch x`", 'a"; touch x; "', "\\", "!!", "it's $5"])
def test_what_is_said_to_type_runs_nothing(evil: str) -> None:
    with pytest.raises(ManifestError) as caught:
        require_distinct({evil + "a": 2, evil + "A": 1}, "t.csv")
    said = str(caught.value).split("thoraclip index: ")[1].partition(" (or,")[0]
    run = subprocess.run(["bash", "-c", f"printf %s {said}"], capture_output=True, text=True, check=True)
    assert run.stdout == f"--label-map{evil}A={evil}a"


@pytest.mark.parametrize("counts", SEVERAL)
def test_other_names_are_no_question(counts: dict[str, int]) -> None:
    require_distinct(counts, "m")


def test_an_accent_behind_an_invisible_character_joins_its_letter() -> None:
    assert tidy("caf\u0065\u200b\u0301") == tidy(tidy("cafe\u200b\u0301")) == "café"


def test_a_map_renames_merges_leaves_out_and_keeps_apart() -> None:
    rename = LabelMap(["Covid =COVID", "x=", "a=b", "b=a", "y=y"])
    assert [rename(name) for name in ("Covid", "COVID", "x", "a", "b", "y", "z", None)] == [
        "COVID", "COVID", None, "b", "a", "y", "z", None,
    ]  # fmt: skip
    assert rename.kept == ("y",) and LabelMap({"a=b": "c"})("a=b") == "c" and LabelMap(apart=["q "]).kept == ("q",)
    with pytest.raises(ConfigError, match="--label-map: no image has the label 'Covid'; did you mean 'COVID'?"):
        rename.require_known(["COVID", "x", "a", "b", "y"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Covid", "--label-map 'Covid': expected OLD=NEW"),
        (["a=b=c"], "--label-map 'a=b=c': expected OLD=NEW; in Python give a mapping"),
        ([" =b"], "--label-map '=b': expected OLD=NEW, and the class to rename is empty"),
        (["a=b", "a =c"], "--label-map: 'a' becomes 'b' and 'c'; keep one"),
    ],
)
def test_a_map_that_means_nothing_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LabelMap(given)
    assert message in str(caught.value)


def test_what_was_tidied_is_noted_with_its_number() -> None:
    note = "labels: spaces, invisible characters, accents tidied in 3 rows, first 'a\\xa0' -> 'a'"
    assert tidy_note("labels", {"b ": 1, "a\u00a0": 2}) == note
