"""Settings: unknown names all at once, wrong types with the value, and TOML that reads back to the same config."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.config import Settings, build_config, config_toml, field_help, parse_settings, toml_value
from thoraclip.documents import read_toml
from thoraclip.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Base(Settings):
    """A config."""

    model: str
    """Hub id or folder."""
    seed: int = 0
    """The one seed
    of the run."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """A config with a rule of its own."""

    learning_rate: float = 1e-3
    """Step length."""
    use_mask: bool = False
    classes: tuple[str, ...] = ()
    """Class names."""
    steps: int | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate < 0:
            raise ConfigError(f"learning_rate = {self.learning_rate}: must not be negative")


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"modle": "x", "sede": 1, "seed": 1}, "a.toml: unknown setting 'modle'; did you mean 'model'?; "
                                               "a.toml: unknown setting 'sede'; did you mean 'seed'?"),
        ({"seed": 1}, "a.toml: setting 'model' is needed; add model = ..."),
        ({"model": "m", "learning_rate": -1}, "a.toml: learning_rate = -1.0: must not be negative"),
    ],
)  # fmt: skip
def test_all_unknown_names_what_is_missing_and_the_configs_own_rule(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Config, given_, where="a.toml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("seed", "1", "seed = '1': a whole number is needed"),
        ("seed", 1.0, "seed = 1.0: a whole number is needed"),
        ("seed", True, "seed = True: a whole number is needed"),
        ("learning_rate", "fast", "learning_rate = 'fast': a number is needed"),
        ("learning_rate", True, "learning_rate = True: a number is needed"),
        ("use_mask", 1, "use_mask = 1: true or false is needed"),
        ("model", 3, "model = 3: text is needed"),
        ("classes", "A", "classes = 'A': a list is needed; write classes = [\"A\"], or --set 'classes=[\"A\"]'"),
        ("weights", {}, "weights = {}: a list is needed; write weights = [...], or --set 'weights=[...]'"),
        ("classes", ["A", 2], "classes = 2: text is needed"),
        ("steps", "many", "steps = 'many': a whole number is needed"),
        ("weights", [1, "x"], "weights = 'x': a number is needed"),
    ],
)
def test_a_wrong_type_is_refused_with_the_value(name: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Config, {"model": "m"} | {name: value}, where="a.toml")
    assert str(caught.value) == f"a.toml: {rule}"


def test_values_are_converted() -> None:
    values = {"model": "m", "learning_rate": 1, "classes": ["a", "b"], "weights": [1, 2.5], "steps": None}
    built = build_config(Config, values, where="x")
    assert built == Config(model="m", learning_rate=1.0, classes=("a", "b"), weights=(1.0, 2.5))
    assert type(built.learning_rate) is float and type(built.weights[0]) is float  # type: ignore[index]


def test_settings_of_the_command_line_and_the_last_one_wins() -> None:
    texts = ["seed=2", "seed=1", "learning_rate=1e-3", "use_mask=true", "model=openai/clip-vit", 'classes=["a", "b"]']
    assert parse_settings([*texts, 'x="1"', "y=a=b", "z="]) == {
        "seed": 1, "learning_rate": 1e-3, "use_mask": True, "model": "openai/clip-vit", "classes": ["a", "b"],
        "x": "1", "y": "a=b", "z": "",
    }  # fmt: skip


@pytest.mark.parametrize("setting", ["seed", "=1", " =1", ""])
def test_a_setting_without_name_or_value_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(["model=m", setting])
    assert f"--set '{setting}': expected name=value" in str(caught.value)


def test_a_settings_file_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: is missing; name an existing TOML file"):
        read_toml(tmp_path / "none.toml")
    for content in (b"seed = \n", 'model = "é"'.encode("latin-1")):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
            read_toml(tmp_path / "bad.toml")


any_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    ["\x7f", '"\\', "\r\n", "\t"]
)
finite = st.floats(allow_nan=False, allow_infinity=True, min_value=0)


@examples(60)
@given(
    st.builds(
        Config,
        model=any_text,
        seed=st.integers(),
        learning_rate=finite,
        use_mask=st.booleans(),
        classes=st.lists(any_text, max_size=3, unique=True).map(tuple),
        steps=st.none() | st.integers(),
        weights=st.none() | st.lists(finite, max_size=3).map(tuple),
    )
)
def test_toml_reads_back_to_the_same_config(config: Config) -> None:
    assert build_config(Config, tomllib.loads(config_toml(config)), where="x") == config


@examples(30)
@given(st.dictionaries(any_text, st.integers() | any_text | st.lists(st.booleans()), max_size=3))
def test_a_table_reads_back(table: dict[str, Any]) -> None:
    assert tomllib.loads(f"t = {toml_value(table)}")["t"] == table


def test_none_and_skipped_fields_are_left_out() -> None:
    text = config_toml(Config(model="m", learning_rate=math.inf), skip=("seed",))
    assert text == 'model = "m"\nlearning_rate = inf\nuse_mask = false\nclasses = []\n'


def test_help_is_the_text_under_the_field() -> None:
    assert field_help(Config) == {
        "model": "Hub id or folder.",
        "seed": "The one seed of the run.",
        "learning_rate": "Step length.",
        "classes": "Class names.",
    }
