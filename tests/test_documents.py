"""Documents from outside: right ones are read as the standard library reads them, all others are one line."""

import json
import os
import re
import tomllib
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thoraclip.config import toml_value
from thoraclip.documents import DIGITS, KEY_PARTS, Limits, parse_json, parse_toml, read_json, read_toml
from thoraclip.errors import ConfigError, InputError, ManifestError, ModelError

texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(scalars | texts, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v, max_size=4))


def refused(parse, data, rule, error=ConfigError, remedy="mend the file"):
    with pytest.raises(error, match=rule) as caught:
        parse(data, "notes")
    message = str(caught.value)
    assert message.startswith("notes: ") and message.endswith(f"; {remedy}")
    assert "\n" not in message and len(message) < 300


@given(values, st.booleans())
def test_json_is_read_as_the_standard_library_reads_it(value, bom):
    text = json.dumps(value, ensure_ascii=False)
    assert parse_json(text.encode("utf-8-sig" if bom else "utf-8"), "x") == value
    assert parse_json(text, "x") == value


@given(st.dictionaries(texts, scalars.filter(lambda v: v is not None) | texts | st.lists(texts), max_size=5))
def test_toml_is_read_as_the_standard_library_reads_it(table):
    text = "".join(f"{toml_value(name)} = {toml_value(value)}\n" for name, value in table.items())
    assert parse_toml(text, "x") == tomllib.loads(text) == table


@given(st.binary(max_size=60) | st.text(alphabet="[]{}\":,.0123456789eE+-tfn\\u\n= #'", max_size=60).map(str.encode))
@example(b"")
@example(b"\xff\xfe[\x00]\x00")
@example(b"[\x00]\x00")
def test_any_bytes_are_read_or_refused_in_one_line(data):
    for parse in (parse_json, parse_toml):
        try:
            value = parse(data, "x")
        except (InputError, ConfigError) as error:
            assert "\n" not in str(error)
        else:
            json.dumps(value, allow_nan=False, default=str).encode()


HOSTILE_JSON = [
    (b"[" * 100_000, "nested more than 64 deep"),
    (b"[" * 200 + b"]" * 200, "nested more than 64 deep"),
    (b'{"a":' * 900 + b"1" + b"}" * 900, "nested more than 64 deep"),
    (b"1" * 5_000, "a number of more than 100 digits"),
    (b"[-0." + b"1" * 5_000 + b"]", "a number of more than 100 digits"),
    (b"[" + b"1," * 1_000_000 + b"1]", "more than 1000000 values"),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' stands there twice"),
    (b'{"a": 1, "\\u0061": 2}', "key 'a' stands there twice"),
    (b"NaN", "NaN is no finite number"),
    (b"[-Infinity]", "-Infinity is no finite number"),
    (b"1e999", "1e999 is no finite number"),
    (b'"\\ud800"', "half a surrogate pair"),
    (b'{"\\udfff": 1}', "half a surrogate pair"),
    (b'"a\\u0000"', "a NUL"),
    ('{"a": 1}'.encode("utf-16"), "not UTF-8 text: byte 0"),
    ('{"a": 1}'.encode("utf-16-le"), "Expecting property name"),
    (b'{"a": "\xe9"}', "not UTF-8 text: byte 7"),
    (b"", "Expecting value"),
    (b'{"a": 1} x', "Extra data"),
    (b'"' + b"a" * (16 << 20) + b'"', "larger than 16,777,216 bytes"),
]
HOSTILE_TOML = [
    (b"a = " + b"[" * 100_000, "nested more than 64 deep"),
    (b"a = " + b"[" * 100 + b"]" * 100, "nested more than 64 deep"),
    (b"a = " + b"1" * 5_000, "a number of more than 100 digits|4300"),
    (b"a = 0x" + b"f" * 5_000, "a number of more than 100 digits"),
    (b"a = 1." + b"1" * 5_000, "a number of more than 100 digits"),
    (b"a" + b".a" * 50_000 + b" = 1", "a key of more than 32 parts"),
    (b"[" + b"a . " * 50_000 + b"a]", "a key of more than 32 parts"),
    (b"x = { " + b"'a'.\"b\"." * 20_000 + b"a = 1 }", "a key of more than 32 parts"),
    (b"a = nan", "nan is no finite number"),
    (b"a = -inf", "-inf is no finite number"),
    (b"a = 1e999", "1e999 is no finite number"),
    (b"a = 1\na = 2", "overwrite"),
    (b'a = "\\u0000"', "a NUL"),
    ("a = 1".encode("utf-16"), "not UTF-8"),
    (b"a = '" + b"a" * (1 << 20) + b"'", "larger than 1,048,576 bytes"),
]


@pytest.mark.parametrize(("data", "rule"), HOSTILE_JSON, ids=[rule for _, rule in HOSTILE_JSON])
def test_hostile_json_is_one_line(data, rule):
    given = {"error": ManifestError, "remedy": "write it again"}
    refused(lambda *document: parse_json(*document, **given), data, rule, **given)


@pytest.mark.parametrize(("data", "rule"), HOSTILE_TOML, ids=[rule for _, rule in HOSTILE_TOML])
def test_hostile_toml_is_one_line(data, rule):
    refused(parse_toml, data, rule)


@pytest.mark.parametrize(
    "text", ["a" * 1_000_000, "a" * 1_000_000 + " = 1", "'" * 500_000, '"a' * 400_000, "a.\n" * 300_000]
)
def test_the_search_for_long_keys_takes_no_longer_than_the_text_is(text):
    with suppress(ConfigError):
        parse_toml(text, "x")


def test_what_stays_within_the_limits_is_read():
    assert parse_json("[" * 64 + "]" * 64, "x") is not None
    assert parse_json("9" * DIGITS, "x") == 10**DIGITS - 1
    assert parse_json("[1,2,3]", "x", limits=Limits(values=3)) == [1, 2, 3]
    assert parse_toml("a" + ".a" * (KEY_PARTS - 1) + " = 1", "x")
    assert parse_toml("\ufeffa = 1".encode(), "x") == {"a": 1}
    assert parse_toml("a = '" + "one sentence with a stop. " * 500 + "'", "x")


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(1 << 40)
    for name, rule in [
        ("pipe", r"cannot be read \(it is no file\)"),
        ("folder", r"cannot be read \(it is no file\)"),
        ("none", "is missing"),
        ("dangling", "is missing"),
        ("huge", "is larger than"),
        ("a" * 999, "cannot be read"),
        ("\0", "cannot be read"),
    ]:
        with pytest.raises(ModelError, match=f"^{re.escape(str(tmp_path / name))}: {rule}"):
            read_json(tmp_path / name, error=ModelError)
        with pytest.raises(InputError, match=rule):
            read_toml(tmp_path / name)
    (tmp_path / "good").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "good") == {"a": 1}
