"""Spelling of class names and ids: what is merged without asking, and what is a question with a command to type.

"covid ", "covid\\u00a0", "\\ufeffcovid", NFC and NFD      one class: the tidy form
COVID, Covid, 'covid', a Cyrillic o; 1, 1.0; Normal, Normall   a question: --label-map "Covid=COVID"
"""

from __future__ import annotations

import html
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from thoraclip.errors import ConfigError, ManifestError, did_you_mean

__all__ = ["LabelMap", "loose", "require_distinct", "split_name", "tidy", "tidy_note"]

_INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb]"
)
"""Control characters that are no white space, marks of joining and of writing direction, variation selectors."""
_BETWEEN = re.compile(r"(?<=[^\W\d_])[\W_]+(?=\w)|(?<=\w)[\W_]+(?=[^\W\d_])")
_NUMBER = re.compile(r"([-+]?)0*(\d+)(?:[.,]0*)?", re.ASCII)
_ACCENTS = re.compile("[\u0300-\u036f]")
_AROUND = re.compile(r"^(?:[^\w+-]|_)+|(?:[^\w+-]|_)+$")
_ENDING = re.compile(r"(?:y|ies|s*(?:es?)?)$")
"""What singular and plural differ by: opacity, opacities; mass, masses; nodule, nodules."""
_LOOKS = str.maketrans(
    "\u0430\u0432\u0441\u0435\u043d\u0456\u0458\u043a\u043c\u043e\u0440\u0455\u0442\u0445\u0443"
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u0131\u2212\u2010\u2011\u2012\u2013\u2014\u2015",
    "abcehijkmopstxyabezhikmvoptyxi-------",
)
"""Small Cyrillic and Greek letters, i without its dot, the minus sign and dashes, to what they or their capitals look
like."""
_COPY = re.compile(
    r"^cop(?:y|ie|ia)(?: \(\d+\))? (?:of|de|di) |^kopie von |"
    r"[\s_]*(?:-\s*)?\b(?:copy|copie|copia|kopie)(?: \(?\d+\)?)?$|\s*\(\d+\)$|\s\d$",
    re.IGNORECASE,
)
"""What Windows, macOS and a second unpacking add to the name of a folder."""
_RARE, _TIMES, _SHORTEST, _MOST = 3, 5, 5, 1000
_SHOWN = 6
_SPLIT_WORD = re.compile(
    r"(?:(?P<train>train(?:ing)?|tr)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))(?:[\W_]*(?:data|images|set))?"
)


def tidy(text: str) -> str:
    """The safe form of a name: NFC, without invisible characters, white space collapsed and stripped. Idempotent."""
    if text.isascii() and text.isalnum():
        return text
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split())


def tidy_note(what: str, changed: Mapping[str, int]) -> str:
    """A line that says how many values were written untidily; `changed` is untidy value -> rows."""
    first, rows = min(changed), sum(changed.values())
    return f"{what}: spaces, invisible characters, accents tidied in {rows} rows, first {first!a} -> {tidy(first)!a}"


def split_name(word: str | None) -> str | None:
    """`Train`, `training`, `valid`, `test_data`, ... -> `train`, `val` or `test`; `None` for any other word."""
    match = _SPLIT_WORD.fullmatch((word or "").strip().lower())
    return match and match.lastgroup


def loose(text: str) -> str:
    """Equal for names that differ only by case, width, accents, script (a Cyrillic o looks like `o`), signs around
    them but plus and minus, what stands between two words, entities of HTML, or `1` against `1.0`."""
    text = tidy(html.unescape(text))
    plain = text.casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        plain = _ACCENTS.sub("", unicodedata.normalize("NFD", plain)).translate(_LOOKS)
        plain = "".join(str(unicodedata.decimal(letter, letter)) for letter in plain)
    plain = _AROUND.sub("", plain) or plain
    number = _NUMBER.fullmatch(plain)
    return f"{number[1]}{number[2]}" if number else _BETWEEN.sub("", plain)


def require_distinct(counts: Mapping[str, int], where: str, *, kept: Collection[str] = (), remedy: str = "") -> None:
    """Refuse classes that may be one, by a line that names them, their images and what to type.

    They differ only as `loose` says, are singular and plural, or one has at most 3 images and is one letter away from
    one with 5 times as many.

    Args:
        counts: tidy class -> images.
        where: begins the message.
        kept: classes that the user has said to be classes of their own.
        remedy: what to do; default: `--label-map` to type.

    Raises:
        ManifestError: such classes.
    """
    asked = {name: count for name, count in counts.items() if name not in kept}
    alike = _alike(asked)
    settled = {name for names in alike for name in names}  # each class is in one question at a time
    groups = [*alike, *([rare, like] for rare, like in _misspelt(asked) if rare not in settled)]
    if not groups:
        return
    shown, renamed = [], list[tuple[str, str]]()
    for names in groups:
        new = max(names, key=lambda name: (not _COPY.search(name), counts[name], name.isascii(), -len(name), name))
        shown.append(", ".join(f"'{name}' ({counts[name]})" for name in names))
        renamed += [(name, new) for name in names if name != new]
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    old = renamed[0][0]
    options = " ".join(_option(*pair) for pair in renamed)
    typed = remedy or f"add to thoraclip index: {{}} (or, to keep a class apart: {_option(old, old)})"
    if not remedy and any("=" in name for pair in renamed for name in pair):
        options, typed = str(dict(renamed)), "rename them, or in Python: thoraclip.index(..., label_map={})"
    listed = "; ".join(shown[:_SHOWN]) + more
    raise ManifestError(f"{where}: one class or several? {listed} images; {typed.replace('{}', options)}")


def _option(old: str, new: str) -> str:
    """What to type in a shell, which must run nothing of the names."""
    pair = f"{old}={new}"
    return f"--label-map {shlex.quote(pair)}" if re.search(r'[$`"\\!]', pair) else f'--label-map "{pair}"'


def _alike(counts: Mapping[str, int]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    known = set(map(loose, counts))
    for name in sorted(counts):
        original = loose(_COPY.sub("", name))
        plain = original if original in known else loose(name)
        groups[_ENDING.sub("", plain) if len(plain) > 3 else plain].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _misspelt(counts: Mapping[str, int]) -> Iterator[list[str]]:
    """[rare name, common name] that are one letter apart: added, left out, changed, or swapped with the next."""
    if len(counts) > _MOST:  # ids or free text
        return
    near: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        for shorter in _without_a_letter(loose(name)):
            near[shorter].append(name)
    for name in sorted(name for name in counts if counts[name] <= _RARE):
        others = (other for shorter in _without_a_letter(loose(name)) for other in near[shorter])
        common = (other for other in others if counts[other] >= _TIMES * counts[name])
        if like := next((other for other in common if _is_a_letter_apart(name, other)), None):
            yield [name, like]


def _without_a_letter(name: str) -> set[str]:
    """The name, and the name without any one of its letters; nothing for short names."""
    if len(name) < _SHORTEST:
        return set()
    return {name, *(name[:i] + name[i + 1 :] for i in range(len(name)) if name[i].isalpha())}


def _is_a_letter_apart(one: str, other: str) -> bool:
    """Whether two names are; `Type A` and `Type B`, `4a` and `4b`, which differ by so short a word, are not."""
    words = [set(re.findall(r"\w+", name.casefold())) for name in (one, other)]
    if all(len(word) <= 2 for word in words[0] ^ words[1]):
        return False
    short, long = sorted((loose(one), loose(other)), key=len)
    if short == long:  # a question already
        return False
    if len(short) < len(long):
        return short in _without_a_letter(long)
    differ = [place for place, (a, b) in enumerate(zip(short, long, strict=True)) if a != b]
    first, last = differ[0], differ[-1]
    return first == last or (last == first + 1 and short[first] + short[last] == long[last] + long[first])


class LabelMap:
    """Old class -> new class, applied at once (never in a chain); an empty new one leaves the images unlabelled.

    Args:
        given: texts `OLD=NEW`, or (old, new) pairs by a mapping; `OLD=OLD` keeps a class apart from similar ones.
        apart: more classes that stay apart, whether or not an image has them.
        option: what messages call it.

    Raises:
        ConfigError: no `OLD=NEW`, an empty OLD, or two NEW for one OLD.
    """

    def __init__(
        self,
        given: Mapping[str, str] | Sequence[str] | str = (),
        *,
        apart: Iterable[str] = (),
        option: str = "--label-map",
    ) -> None:
        texts = [given] if isinstance(given, str) else given
        pairs = texts.items() if isinstance(texts, Mapping) else [_pair(text, option) for text in texts]
        self._new: dict[str, str] = {}
        self._apart = frozenset(map(tidy, apart))
        for raw_old, raw_new in pairs:
            old, new = tidy(raw_old), tidy(raw_new)
            if not old:
                what = "class to rename" if option == "--label-map" else "old name"
                raise ConfigError(f"{option} '={new}': expected OLD=NEW, and the {what} is empty")
            if self._new.setdefault(old, new) != new:
                raise ConfigError(f"{option}: '{old}' becomes '{self._new[old]}' and '{new}'; keep one")

    @property
    def renamed(self) -> dict[str, str]:
        """Old class -> new one, as given."""
        return dict(self._new)

    @property
    def kept(self) -> tuple[str, ...]:
        """The classes that the user keeps apart, sorted."""
        return tuple(sorted(self._apart.union(old for old, new in self._new.items() if old == new)))

    def __call__(self, label: str | None) -> str | None:
        """The new class of a tidy one; `None` where it is unknown or left unlabelled."""
        return None if label is None else (self._new.get(label, label) or None)

    def require_known(self, labels: Iterable[str | None]) -> None:
        """Raise ConfigError for an old class that no image has."""
        known = {label for label in labels if label is not None}
        for old in self._new:
            if old not in known:
                raise ConfigError(f"--label-map: no image has the label '{old}'{did_you_mean(old, known)}")


def _pair(text: str, option: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not sign or "=" in new:
        raise ConfigError(f"{option} '{text}': expected OLD=NEW; in Python give a mapping for names with '='")
    return old, new
