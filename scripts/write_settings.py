"""Write docs/settings.md from the code: every setting of the study and of each method, with default and help.

python scripts/write_settings.py            # a test fails when the page is out of date
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from thoraclip.cards import CardSettings
from thoraclip.config import field_help, field_kinds, toml_value
from thoraclip.methods import METHODS
from thoraclip.ranges import range_text
from thoraclip.study import StudyConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def table(config: type) -> str:
    texts = {name: text.replace("|", r"\|") for name, text in field_help(config).items()}
    fields, kinds = dataclasses.fields(config), field_kinds(config)
    rows = [
        f"| `{f.name}` | `{toml_value(f.default)}` | {range_text(kinds[f.name])} | {texts[f.name]} |" for f in fields
    ]
    return "\n".join(["| setting | default | range | what it does |", "|---|---|---|---|", *rows])


def page() -> str:
    parts = [
        "# Settings",
        "Written by `scripts/write_settings.py` from the code. Settings stand in a TOML file (`--config`, or the "
        "study file) or behind `--set NAME=VALUE`; an unknown name is an error that names the nearest known one.",
        "## Study",
        (
            "These stand at the top of a study file; `[[methods]]` tables follow, each with `name`, `kind` and the "
            "method's own settings."
        ),
        table(StudyConfig),
    ]
    for kind, method in METHODS.items():
        parts += [f"## {kind}", method.summary, table(method.config_type)]
    stated = 'What `thoraclip card` takes; what is left out is "not stated" on the card.'
    return "\n\n".join([*parts, "## card", stated, table(CardSettings)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
