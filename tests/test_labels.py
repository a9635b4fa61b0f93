"""Classes keep their order, unknown is not a class, and every class of any data set has prompts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.labels import LabelSet, load_prompts, shipped_prompt_sets


def test_given_order_stays_and_default_order_is_by_name_without_the_unknown() -> None:
    given, by_name = LabelSet(("b", "a")), LabelSet.of(["b", None, "a", "b"])
    assert given.names == ("b", "a") and by_name.names == ("a", "b")
    assert given.index("a") == 1 and len(given) == 2
    assert given != by_name and {LabelSet(("a", "b")): 1}[by_name] == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("only",), r"classes \['only'\]: a classifier needs two classes or more"),
        ((), r"classes \[\]: a classifier needs two"),
        (("a", " "), r"classes \['a', ' '\]: a class name is empty"),
        (("a", "b", "a"), r"classes \['a', 'b', 'a'\]: a class name is repeated"),
    ],
)
def test_bad_classes_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        LabelSet(names)


@pytest.mark.parametrize(
    ("label", "answer"), [("Covid19", "did you mean 'COVID-19'"), ("unknown", "known: COVID-19, Normal")]
)
def test_an_unknown_label_is_answered_with_the_nearest_or_all(label: str, answer: str) -> None:
    with pytest.raises(ManifestError, match=f"label '{label}' is not one of the classes; {answer}"):
        LabelSet(("COVID-19", "Normal")).index(label)


def test_the_shipped_sets_are_counted() -> None:
    assert shipped_prompt_sets() == ("chest-xray-ensemble", "descriptions", "pairs", "reference", "view-and-class")


SPELLINGS = {"COVID-19": ("covid19", "Covid 19"), "Non-COVID": ("NON_COVID", "noncovid"), "Normal": ("normal",)}


@pytest.mark.parametrize("name", shipped_prompt_sets())
def test_every_class_has_prompts_in_every_shipped_set_whatever_its_spelling(name: str) -> None:
    prompts = load_prompts(name)
    assert prompts.name == name
    for label in (*SPELLINGS, "COVID", "Pneumonia", "Tuberculosis", "肺炎", "{}", "a class of my own"):
        texts = prompts.for_class(label)
        assert texts and len(set(texts)) == len(texts), label
        assert all(text == text.strip() and "  " not in text for text in texts), label
        assert all(prompts.for_class(spelling) == texts for spelling in SPELLINGS.get(label, ())), label
    for one, other in itertools.combinations([*SPELLINGS, "Tuberculosis"], 2):
        assert not set(prompts.for_class(one)) & set(prompts.for_class(other)), "classes are told apart"


def test_an_unknown_class_fills_the_templates_with_its_own_name() -> None:
    prompts = load_prompts("pairs")
    assert prompts.for_class("Tuberculosis") == tuple(t.format("Tuberculosis") for t in prompts.templates)
    assert load_prompts("descriptions").for_class("Tuberculosis") == ("a chest X-ray showing Tuberculosis.",)


def write(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return str(folder / "mine.toml")


def test_a_prompt_file_of_ones_own(tmp_path: Path) -> None:
    text = 'templates = ["x {}", "y {}"]\n[classes]\nA = ["one", "two"]\nB = ["b"]\n[prompts]\nB = ["in full"]\n'
    prompts = load_prompts(write(tmp_path, text))
    assert prompts.name == "mine"
    assert prompts.for_class("a") == ("x one", "x two", "y one", "y two")
    assert prompts.for_class("B") == ("in full",), "written-out prompts stand alone"
    assert prompts.for_class("C") == ("x C", "y C")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates = [", "mine.toml: not valid TOML"),
        *((text, "holds none of templates, classes, prompts") for text in ("", 'description = "none"')),
        ('templats = ["{}"]\ntemplates = ["{}"]', "unknown setting 'templats'; did you mean 'templates'"),
        ('templates = ["no place"]', "template 'no place' must hold exactly one '{}'"),
        ('templates = ["{} {}"]', "template '{} {}' must hold exactly one"),
        ('templates = ["{} {name}"]', "template '{} {name}' must hold exactly one"),
        ('templates = ["{} }"]', "template '{} }' must hold exactly one"),
        ('templates = "{}"', "'templates' must be a list of one text or more"),
        ("templates = []", "'templates' must be a list of one text or more"),
        ("templates = [1]", "'templates' holds an empty or non-text entry"),
        ('classes = "A"', "'classes' must be a table of class name"),
        ("[classes]\nA = []", "'classes.A' must be a list of one text or more"),
        ('[prompts]\nA = [" "]', "'prompts.A' holds an empty or non-text entry"),
    ],
)
def test_a_bad_prompt_file_is_refused_with_the_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_prompts(write(tmp_path, text))
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_a_prompt_file_in_another_encoding_a_missing_one_and_an_unknown_set(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes('templates = ["é {}"]'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML \(not UTF-8"):
        load_prompts(str(tmp_path / "latin.toml"))
    with pytest.raises(ConfigError, match="unknown prompts 'pair'; did you mean 'pairs'"):
        load_prompts("pair")
    with pytest.raises(InputError, match=r"/nowhere/p\.toml: is missing; .*reference"):
        load_prompts("/nowhere/p.toml")
