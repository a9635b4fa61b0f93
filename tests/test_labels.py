"""Classes keep their order, unknown is not a class, and every class of any data set has prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.labels import LabelSet, load_prompts, shipped_prompt_sets


def test_given_order_stays_and_default_order_is_by_name() -> None:
    assert LabelSet(("b", "a")).names == ("b", "a")
    assert LabelSet.of(["b", None, "a", "b"]).names == ("a", "b")
    assert LabelSet(("b", "a")).index("a") == 1
    assert len(LabelSet(("b", "a"))) == 2


def test_equal_sets_are_one_key() -> None:
    assert {LabelSet(("a", "b")): 1}[LabelSet.of(["b", "a"])] == 1
    assert LabelSet(("a", "b")) != LabelSet(("b", "a"))


def test_unknown_is_not_negative() -> None:
    labels = LabelSet.of(["Normal", None, "COVID-19"])
    assert labels.names == ("COVID-19", "Normal")
    with pytest.raises(ManifestError, match="label 'unknown' is not one of the classes; known: COVID-19, Normal"):
        labels.index("unknown")


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


def test_an_unknown_label_is_answered_with_the_nearest() -> None:
    with pytest.raises(ManifestError, match="label 'Covid19' is not one of the classes; did you mean 'COVID-19'"):
        LabelSet(("COVID-19", "Normal")).index("Covid19")


def test_the_shipped_sets_are_counted() -> None:
    assert shipped_prompt_sets() == ("chest-xray-ensemble", "descriptions", "pairs", "reference", "view-and-class")


@pytest.mark.parametrize("name", shipped_prompt_sets())
@pytest.mark.parametrize(
    "label", ["COVID-19", "COVID", "Non-COVID", "Normal", "Pneumonia", "Tuberculosis", "肺炎", "{}"]
)
def test_every_class_has_prompts_in_every_shipped_set(name: str, label: str) -> None:
    prompts = load_prompts(name)
    texts = prompts.for_class(label)
    assert prompts.name == name
    assert texts and len(set(texts)) == len(texts)
    assert all(text.strip() == text and text for text in texts)


@pytest.mark.parametrize("name", shipped_prompt_sets())
def test_the_classes_of_the_field_are_told_apart(name: str) -> None:
    sets = [set(load_prompts(name).for_class(label)) for label in ("COVID-19", "Non-COVID", "Normal")]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


@pytest.mark.parametrize("name", shipped_prompt_sets())
@pytest.mark.parametrize(
    ("spelling", "known"),
    [("covid19", "COVID-19"), ("Covid 19", "COVID-19"), ("NON_COVID", "Non-COVID"), ("noncovid", "Non-COVID"), ("normal", "Normal")],
)  # fmt: skip
def test_any_spelling_gives_the_same_prompts(name: str, spelling: str, known: str) -> None:
    prompts = load_prompts(name)
    assert prompts.for_class(spelling) == prompts.for_class(known)
    assert prompts.for_class(known) != prompts.for_class("Tuberculosis")


def test_an_unknown_class_fills_the_templates_with_its_own_name() -> None:
    prompts = load_prompts("pairs")
    assert prompts.for_class("Tuberculosis") == tuple(t.format("Tuberculosis") for t in prompts.templates)
    assert load_prompts("descriptions").for_class("Tuberculosis") == ("a chest X-ray showing Tuberculosis.",)


def write(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return str(folder / "mine.toml")


def test_a_prompt_file_of_ones_own(tmp_path: Path) -> None:
    prompts = load_prompts(
        write(
            tmp_path,
            'templates = ["x {}", "y {}"]\n[classes]\nA = ["one", "two"]\nB = ["b"]\n[prompts]\nB = ["in full"]\n',
        )
    )
    assert prompts.name == "mine"
    assert prompts.for_class("a") == ("x one", "x two", "y one", "y two")
    assert prompts.for_class("B") == ("in full",), "written-out prompts stand alone"
    assert prompts.for_class("C") == ("x C", "y C")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates = [", "mine.toml: not valid TOML"),
        ('templats = ["{}"]', "unknown setting 'templats'; did you mean 'templates'"),
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


def test_a_prompt_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes('templates = ["é {}"]'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8"):
        load_prompts(str(tmp_path / "latin.toml"))


def test_an_unknown_set_and_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="unknown prompts 'pair'; did you mean 'pairs'"):
        load_prompts("pair")
    with pytest.raises(InputError, match=r"/nowhere/p\.toml: no such prompt file; .*reference"):
        load_prompts("/nowhere/p.toml")
