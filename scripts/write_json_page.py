"""Write docs/json.md from docs/schemas: what `--json` prints, by command.

python scripts/write_json_page.py           # a test fails when the page is out of date
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
COMMANDS = ("index", "check", "report", "audit", "export", "predict")
HEAD = """# JSON

`--json` prints the result of a command as one JSON document on standard output. Progress and notes go to standard
error. Exit codes are the same as without it. With code 1 (`check --strict` found a leak) there is a document. With
code 2 (a mistake) there is one line on standard error and nothing on standard output.

```sh
thoraclip check folds.parquet --json | jq -r '.leaks[]'
thoraclip report runs/* --out report --json | jq '.methods[] | {name, macro_f1: .metrics.macro_f1}'
thoraclip predict bundle images/ --json | jq '.rows[] | select(.ood)'
```

A document is what the command writes into a file, or what the [Python function](api.md) returns. `schema` is the
number of its form: under the same number, names may be added; none is removed and none changes its meaning. Accuracies,
scores and other shares are from 0 to 1. The text is ASCII; other letters are escaped. Each document has a JSON Schema
(2020-12) beside this page. `study --json` prints the content of `report.json`, and with `--dry-run` the
[plan](index.md).

Without `--out`, `predict --json` holds all rows in memory; for a large archive name a file with `--out`."""


def kind(value: dict[str, Any]) -> str:
    if "const" in value:
        return str(value["const"])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    inner = value.get("items", {}).get("properties") or {}
    fields = f" of {', '.join(f'`{name}`' for name in inner)}" if inner else ""
    return " or ".join(kinds) + fields


def table(name: str) -> str:
    content = json.loads((DOCS / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    rows = [
        f"| `{key}` | {kind(value)} | {value.get('description', '')} |" for key, value in content["properties"].items()
    ]
    text = f"{content['description']} [Schema](schemas/{name}.json)."
    return "\n".join([f"## {name}", text, "", "| name | type | what it is |", "|---|---|---|", *rows])


def page() -> str:
    return "\n\n".join([HEAD, *map(table, COMMANDS)]) + "\n"


if __name__ == "__main__":
    (DOCS / "json.md").write_text(page(), encoding="utf-8")
    print(f"wrote {DOCS / 'json.md'}")
