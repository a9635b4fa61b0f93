"""Class names in a fixed order, and the prompts that describe them to a text encoder.

Unknown is not negative: an image without a label has no index (`None`), never the index of "Normal".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from thoraclip.documents import parse_toml, read_toml
from thoraclip.errors import ConfigError, ManifestError, did_you_mean
from thoraclip.spelling import loose

__all__ = ["LabelSet", "PromptSet", "load_prompts", "shipped_prompt_sets"]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a single-label task, in the order of the score columns.

    Args:
        names: two names or more, non-empty and unique.

    Raises:
        ManifestError: fewer than two names, an empty one, or a repeated one.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            rule = "a classifier needs two classes or more; add labelled images"
            raise ManifestError(f"classes {list(self.names)}: {rule}")
        if any(not name.strip() for name in self.names):
            raise ManifestError(f"classes {list(self.names)}: a class name is empty; name every class")
        if len(set(self.names)) != len(self.names):
            raise ManifestError(f"classes {list(self.names)}: a class name is repeated; names must be unique")

    @classmethod
    def of(cls, labels: Iterable[str | None]) -> LabelSet:
        """The distinct known labels, sorted by name (the default order everywhere)."""
        return cls(tuple(sorted({label for label in labels if label is not None})))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Position of `name`; raises ManifestError for a name that is not a class."""
        try:
            return self.names.index(name)
        except ValueError:
            raise ManifestError(f"label '{name}' is not one of the classes{did_you_mean(name, self.names)}") from None


@dataclass(frozen=True)
class PromptSet:
    """Prompts per class name, each class with one prompt or more.

    `templates` fill `{}` with each of the class's `names`; a class that the set does not know gets the templates
    filled with its own name, so every class of any data set has prompts.
    """

    name: str
    templates: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    prompts: Mapping[str, tuple[str, ...]]

    def for_class(self, label: str) -> tuple[str, ...]:
        """All prompts of one class; the class name is matched as `spelling.loose` says."""
        key = loose(label)
        written_out = tuple(p for known, texts in self.prompts.items() if loose(known) == key for p in texts)
        names = next((names for known, names in self.classes.items() if loose(known) == key), (label,))
        return written_out or tuple(template.format(name) for template in self.templates for name in names)

    def require_classes(self, labels: Iterable[str]) -> None:
        """Raise ConfigError where the set names no label by one of its classes, and misses one: a misspelling."""
        known, wanted = ({loose(name): name for name in names} for names in ((*self.classes, *self.prompts), labels))
        strange, missing = known.keys() - wanted.keys(), wanted.keys() - known.keys()
        if strange and missing:
            name = known[min(strange)]
            near = did_you_mean(name, wanted.values())
            raise ConfigError(f"prompts '{self.name}': no image is of class '{name}'{near}")


@cache
def shipped_prompt_sets() -> tuple[str, ...]:
    """Names of the prompt sets inside the package."""
    folder = resources.files("thoraclip") / "prompts"
    return tuple(sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml")))


def load_prompts(name_or_file: str | Path) -> PromptSet:
    """Load a shipped prompt set by name, or a TOML file by path.

    The file holds `templates = ["a chest X-ray showing {}."]`, `[classes]` (names that fill the templates) and
    `[prompts]` (prompts written out in full, which then stand alone for that class).

    Raises:
        ConfigError: the name is unknown, or the file does not follow this form.
        InputError: the file is missing.
    """
    name_or_file = str(name_or_file)
    if name_or_file.endswith(".toml"):
        known = ", ".join(shipped_prompt_sets())
        content = read_toml(Path(name_or_file), missing=f"name a TOML file or one of: {known}")
    elif name_or_file in shipped_prompt_sets():
        file = resources.files("thoraclip") / "prompts" / f"{name_or_file}.toml"
        content = parse_toml(file.read_bytes(), file)
    else:
        raise ConfigError(f"unknown prompts '{name_or_file}'{did_you_mean(name_or_file, shipped_prompt_sets())}")
    return _parse_prompts(name_or_file, content)


def _parse_prompts(where: str, content: Mapping[str, object]) -> PromptSet:
    known = ("description", "templates", "classes", "prompts")
    if not content.keys() & {*known[1:]}:
        raise ConfigError(f"{where}: holds none of {', '.join(known[1:])}; write one of them")
    for key in content:
        if key not in known:
            raise ConfigError(f"{where}: unknown setting '{key}'{did_you_mean(key, known)}")
    templates = _texts(where, "templates", content.get("templates", ["a chest X-ray showing {}."]))
    for template in templates:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise ConfigError(f"{where}: template '{template}' must hold exactly one '{{}}', where the class name goes")
    tables: list[dict[str, tuple[str, ...]]] = []
    for key in ("classes", "prompts"):
        table = content.get(key, {})
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: '{key}' must be a table of class name = [texts]")
        tables.append({str(label): _texts(where, f"{key}.{label}", texts) for label, texts in table.items()})
    return PromptSet(Path(where).stem, templates, *tables)


def _texts(where: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ConfigError(f"{where}: '{key}' must be a list of one text or more")
    if any(not isinstance(text, str) or not text.strip() for text in value):
        raise ConfigError(f"{where}: '{key}' holds an empty or non-text entry; every entry is a text")
    return tuple(str(text) for text in value)
