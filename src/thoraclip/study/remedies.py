"""`remedies = [...]` of a study: every method also runs with each remedy against shortcuts.

[[methods]] x remedies -> entries with the settings of the remedy -> rows of the report -> remedies, inside and outside
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.imaging.remedies import REMEDIES as PIXEL_REMEDIES

__all__ = ["REMEDIES", "Remedy", "cross_remedies", "settings_of"]


@dataclass(frozen=True)
class Remedy:
    """One entry of `REMEDIES`: what it does, and the settings of a method that do it."""

    does: str
    settings: Mapping[str, Any]


REMEDIES: Mapping[str, Remedy] = {
    **{name: Remedy(one.does, {"remedy": name}) for name, one in PIXEL_REMEDIES.items()},
    "randomised": Remedy("exposure, grain, marks, ... drawn anew in training", {"augmentation": "randomised"}),
    "source-weights": Remedy("each source of a class weighs the same", {"class_weight": "source"}),
    "source-sampling": Remedy("as many images of each source of a class", {"sampling": "source"}),
    "source-erased": Remedy("what tells the source is taken out of the features", {"erase": "source"}),
    "half-adapter": Remedy("half of what fine-tuning changed (WiSE-FT)", {"adapter_scale": 0.5}),
}
"""Name -> remedy; the study's setting `remedies` takes these names, several for one run joined by `+`."""


def settings_of(remedy: str, where: str) -> dict[str, Any]:
    """The settings of one remedy, or of several joined by `+`; `where` begins every message.

    Raises:
        ConfigError: an unknown name, or two remedies that give a setting two values.
    """
    settings: dict[str, Any] = {}
    for name in remedy.split("+"):
        if name not in REMEDIES:
            raise ConfigError(f"{where}: remedies: unknown remedy '{name}'{did_you_mean(name, REMEDIES)}")
        for setting, value in REMEDIES[name].settings.items():
            if setting == "remedy" and setting in settings:
                value = f"{settings[setting]}+{value}"
            elif settings.get(setting, value) != value:
                raise ConfigError(
                    f"{where}: remedies: '{remedy}' sets {setting} to both {settings[setting]!r} and {value!r}; "
                    "take one of the two"
                )
            settings[setting] = value
    return settings


def cross_remedies(
    entries: Sequence[Mapping[str, Any]], remedies: Sequence[str], known: Mapping[str, frozenset[str]], where: str
) -> Iterator[Mapping[str, Any]]:
    """Every entry as it is, and behind it once with each remedy whose settings it has.

    A method that uses the adapters of a fine-tuning (`then`, `after`) and the fine-tuning share a remedy: each takes
    the settings that it knows, and one that both know is the fine-tuning's.

    Args:
        entries: `[[methods]]` tables; of a study that was written back, with its remedies in them: they stay so.
        remedies: names, see `REMEDIES`.
        known: kind of method -> names of its settings.
        where: begins every message.

    Raises:
        ConfigError: see `settings_of`; or a remedy that no method has the settings for.
    """
    if not remedies or any("with_remedy" in entry for entry in entries):
        yield from entries
        return
    wanted = {remedy: settings_of(remedy, where) for remedy in remedies}
    entries, used = [part for entry in entries for part in _parted(entry)], set[str]()
    treated = dict[tuple[str, str], set[str]]()  # (method, remedy) -> settings that its treated run has
    for entry in entries:
        yield entry
        name, own = str(entry.get("name", entry.get("kind"))), known.get(str(entry.get("kind")), frozenset())
        after = entry.get("after")
        for remedy, settings in wanted.items():
            before = treated.get((str(after), remedy), set())
            mine = {key: value for key, value in settings.items() if key in own and key not in before}
            if before | mine.keys() != settings.keys():
                # a fine-tuning whose follower has the rest is trained with its part
                parts = (e for e in entries if e.get("after") == name)
                rest = frozenset[str]().union(*(known.get(str(e.get("kind")), frozenset()) for e in parts))
                if not mine or not settings.keys() <= own | rest:
                    continue
            used.add(remedy)
            treated[name, remedy] = before | mine.keys()
            tuned = {"after": f"{after}, {remedy}"} if before else {}
            about = {"name": f"{name}, {remedy}", "plain": name, "with_remedy": remedy}
            yield {**entry, **mine, **tuned, **about}
    if unused := [remedy for remedy in remedies if remedy not in used]:
        needed = ", ".join(wanted[unused[0]])
        raise ConfigError(
            f"{where}: remedies: no method of the study can use '{unused[0]}', which needs the setting {needed}; add "
            "one that has it, or leave the remedy out"
        )


def _parted(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A fine-tuning with `then = KIND` as two entries."""
    values = dict(entry)
    then = values.pop("then", None)
    if not isinstance(then, str):  # none, or one that is refused later
        yield entry
        return
    yield values
    name = values.get("name", values.get("kind"))
    yield {"name": f"{name}, then {then}", "kind": then, "after": name}
