"""Whatever a setting or an argument is set to: it is taken, or refused in one line that names it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

import thoraclip
from thoraclip.api import data, deployment, judgement, methods, start
from thoraclip.cards import CardSettings
from thoraclip.config import Settings, build_config, config_toml, field_kinds, parse_settings
from thoraclip.data.phantom import PhantomConfig
from thoraclip.errors import ThoraclipError, printable
from thoraclip.evaluation.results import Published
from thoraclip.methods import METHODS
from thoraclip.methods.audit import AuditConfig
from thoraclip.methods.caption import CaptionConfig
from thoraclip.methods.encoders import EncoderConfig
from thoraclip.models.augment import Augmentation, RandomisedAugmentation
from thoraclip.ranges import NAMED, Range, WordOr, conform
from thoraclip.server.limits import Limits
from thoraclip.study import StudyConfig
from thoraclip.study.images import External

CONFIGS: dict[str, type[Settings]] = {kind: method.config_type for kind, method in METHODS.items()}
CONFIGS |= {c.__name__: c for c in (
    Augmentation, AuditConfig, CaptionConfig, CardSettings, EncoderConfig, External, Limits, PhantomConfig, Published,
    RandomisedAugmentation,
    StudyConfig,
)}  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {
    "StudyConfig": {"folder": "x"},
    "External": {"folder": "x", "name": "x"},
    "Published": {"name": "x"},
}
TEXTS = [
    "", " ", "\0", "a\nb", "\r", "\x1b[2J", "\u202etxt", "\u2028", "\ud800", "\U0001f600", "../../x", "/", "..", "con", "[/b]", "[red]",
    "{0}", "%s", "$(reboot)", "*", "~", "nan", "-1", "1e999", "x" * 300, "x" * 100_000, "a=b", "=", "http://",
]  # fmt: skip
NUMBERS = [
    -1, -(2**70), 0, 1, 2, 2**31, 2**63, 10**18, 10**5000, -0.0, 0.5, 1.0, 1e-320, 1e23, 1e308, math.nan, math.inf, -math.inf,
]  # fmt: skip
ODD = [
    None,
    True,
    False,
    [],
    [[]],
    [None],
    ["a", 1],
    [math.nan],
    [-1],
    [2**70],
    {},
    {"a": 1},
    b"x",
    object(),
    Path("x"),
]
HOSTILE: list[Any] = [*TEXTS, *NUMBERS, *ODD, [""], ["x"] * 20_000, ["\0"], ["a=nan"], ["a=1", "a=1"]]


def one_line(error: ThoraclipError) -> str:
    """The error's text, as it is printed."""
    assert 0 < len(str(error)) <= 12_000
    return printable(error)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_takes_a_value_or_names_itself(name: str) -> None:
    cls, needed = CONFIGS[name], NEEDED.get(name, {})
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        for value in HOSTILE:
            try:
                built = build_config(cls, {**needed, field.name: value}, where="s.toml")
            except ThoraclipError as error:
                assert one_line(error).startswith("s.toml: ")
                continue
            taken = getattr(built, field.name)
            assert conform(field.name, taken, field_kinds(cls)[field.name]) == taken
            config_toml(built).encode()


@pytest.mark.parametrize("name", CONFIGS)
@examples(40)
@given(st.data())
def test_any_toml_value_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=40),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )
    field = data.draw(st.sampled_from(dataclasses.fields(CONFIGS[name])))  # type: ignore[arg-type]
    try:
        build_config(CONFIGS[name], {**NEEDED.get(name, {}), field.name: data.draw(values)}, where="s.toml")
    except ThoraclipError as error:
        one_line(error)


@examples(60)
@given(st.text(st.characters(codec=None), max_size=30) | st.sampled_from(TEXTS))
def test_any_word_behind_set_is_a_value(text: str) -> None:
    assert set(parse_settings([f"seed={text}"])) == {"seed"}


def numbers_of(kind: Any) -> Iterator[Any]:
    """The number types in an annotation, each with its range, or bare; a number in place of a word is not asked for."""
    if typing.get_origin(kind) is Annotated:
        if typing.get_args(kind)[0] is not str and not isinstance(typing.get_args(kind)[1], WordOr):
            yield kind
    elif kind in (int, float):
        yield kind
    else:
        for part in typing.get_args(kind):
            yield from numbers_of(part)


def test_every_number_has_a_range_with_finite_ends() -> None:
    kinds = {(name, field): kind for name, cls in CONFIGS.items() for field, kind in field_kinds(cls).items()}
    found = {place: typing.get_args(part)[1:] for place, kind in kinds.items() for part in numbers_of(kind)}
    assert len(found) > 100
    for place, limits in found.items():
        assert len(limits) == 1 and isinstance(limits[0], Range), place
        assert math.isfinite(limits[0].low) and limits[0].low < limits[0].high < math.inf, place


@pytest.mark.parametrize("name", CONFIGS)
def test_both_ends_of_every_range(name: str) -> None:
    """What lies outside is refused with the name, the value and the range; what lies inside is not refused for it."""
    for field, whole in field_kinds(CONFIGS[name]).items():
        for kind in numbers_of(whole):
            base, limits = typing.get_args(kind)
            step = 1 if base is int else 1e-9
            inside = [limits.low + step * limits.above, limits.high - step * limits.below]
            outside = [limits.low - step * (not limits.above), limits.high + (not limits.below), -(10**30), math.nan]
            for value in (*inside, *outside):
                given_ = value if typing.get_origin(whole) is not tuple else (value,) * 3
                message = ""
                try:
                    build_config(CONFIGS[name], {**NEEDED.get(name, {}), field: given_}, where="s")
                except ThoraclipError as error:
                    message = str(error)
                is_refused = message.startswith(f"s: {field} = ") and str(limits) in message
                assert is_refused == (value in outside or value != value), (field, value, message)


FUNCTIONS: list[Callable[..., Any]] = [
    getattr(module, name)
    for module in (data, deployment, judgement, methods, start)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
]
NO_NAMES = ("", "\0", "x" * 300, "x" * 100_000)
HOOKS = ("progress", "announce", "settings")


def test_every_number_of_the_api_has_a_range() -> None:
    assert len(FUNCTIONS) > 15
    for function in (*FUNCTIONS, methods.method_function("probe")):
        assert hasattr(function, "__wrapped__"), f"{function.__name__} is not checked"
        own = inspect.signature(inspect.unwrap(function, stop=lambda f: not hasattr(f, "__wrapped__"))).parameters
        kinds = {p.name: str(p.annotation).removesuffix(" | None") for p in own.values()}
        assert not [n for n, kind in kinds.items() if kind in ("int", "float")], function.__name__
        assert {"Seed"} == {kind for n, kind in kinds.items() if n == "seed"} or "seed" not in kinds
    assert all(typing.get_origin(kind) is Annotated for kind in NAMED.values())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_argument_is_refused_before_any_work(
    function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No input is there, and every output is a file where a folder is wanted, so each call ends with an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n not in HOOKS}
    needed = {n: str(tmp_path / "nowhere") for n, p in parameters.items() if p.default is p.empty}
    needed |= {n: str(tmp_path / "file" / "x.parquet") for n in ("out", "folder") if n in parameters}
    needed |= {"port": 1} if "port" in parameters else {}
    for name in set(parameters) - {"host", "format"}:
        for value in HOSTILE:
            if value is None or value in ("/", ".."):  # folders that are there
                continue
            if name in ("out", "folder") and isinstance(value, str | Path) and value not in NO_NAMES:
                continue
            with pytest.raises(ThoraclipError) as refused:
                partial(function, **{**needed, name: value})()
            one_line(refused.value)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_method_checks_its_settings_before_it_reads(tmp_path: Path) -> None:
    for value in (-1, 2**70, True, "x", [1]):
        with pytest.raises(ThoraclipError, match="probe: seed = "):
            thoraclip.probe(tmp_path / "no.parquet", out=tmp_path / "out", seed=value)
