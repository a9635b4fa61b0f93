"""`--json`: one document on standard output, as its schema in docs/schemas has it, and nothing else."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.bundle.conftest import Workshop, workshop  # noqa: F401
from tests.bundle.fake_bundle import pretend
from tests.bundle.test_scoring import fill
from tests.cli.test_cli import refused
from tests.conftest import Capture, write_class_folder

from thoraclip.bundle import opening
from thoraclip.cli.app import COMMANDS, run
from thoraclip.cli.command import Command
from thoraclip.tables.manifest import Manifest, write_manifest

REPOSITORY = Path(__file__).parents[2]
SCHEMAS = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (REPOSITORY / "docs" / "schemas").iterdir()
}
OPTIONAL = {"pictures", "encoders", "learning_curve", "remedies"}


@pytest.fixture
def document(capsys: Capture) -> Callable[..., Any]:
    """Run a command and read what it prints, which must be as its schema says, and as complete."""

    def ask(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert run([*map(str, words), "--json"]) == code
        content, schema = json.loads(capsys.readouterr().out), SCHEMAS[str(words[0])]
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema).validate(content)
        assert set(content) - OPTIONAL == set(schema["properties"]) - OPTIONAL, "nothing undescribed, nothing missing"
        return content

    return ask


def test_the_commands_with_a_document_have_a_schema_and_a_section() -> None:
    assert {command.title for command in COMMANDS if command.document} == SCHEMAS.keys() | {"study"}
    page = runpy.run_path(str(REPOSITORY / "scripts" / "write_json_page.py"))["page"]()
    assert (REPOSITORY / "docs" / "json.md").read_text(encoding="utf-8") == page, (
        "run: python scripts/write_json_page.py"
    )
    for name in SCHEMAS:
        assert f"\n## {name}\n" in page
        assert SCHEMAS[name]["title"] == f"thoraclip {name} --json"


def test_index(tmp_path: Path, document: Callable[..., Any]) -> None:
    folder, out = write_class_folder(tmp_path / "in"), tmp_path / "m.parquet"
    for path in sorted(folder.rglob("*.png"))[:1]:
        shutil.copy(path, path.with_name("copy.png"))
        path.with_name("torn.png").write_bytes(path.read_bytes()[:60])
    (folder / "notes.txt").write_text("text")
    content = document("index", folder, "--out", out)
    written = json.loads((tmp_path / "m.index.json").read_text())
    assert content == {**written, "manifest": str(out), "files_read": 26}
    assert [len(content[name]) for name in ("set_aside", "other_files", "repeats")] == [1, 1, 1]
    assert document("index", folder, "--out", out)["files_read"] == 0


def test_check_also_of_a_leak_and_of_the_table_alone(
    manifest: Manifest, tmp_path: Path, document: Callable[..., Any]
) -> None:
    unsafe = Manifest(manifest.table, manifest.root, may_leak=True)
    leaks = unsafe.with_columns(patient=["p"] * len(manifest), split=["train", "test"] * (len(manifest) // 2))
    write_manifest(tmp_path / "m.parquet", leaks)
    content = document("check", tmp_path / "m.parquet", "--no-pictures", "--strict", code=1)
    assert content["leaks"] and content["pictures"] is False
    content = document("check", tmp_path / "m.parquet", "--out", tmp_path / "c")
    assert content == json.loads((tmp_path / "c" / "check.json").read_text())
    assert content["differences"] and "pictures" not in content


def test_report(tmp_path: Path, document: Callable[..., Any]) -> None:
    rows = [f"i{n},test,,{'ab'[n % 2]},{n / 20:.2f},{1 - n / 20:.2f}" for n in range(12)]
    (tmp_path / "net.csv").write_text("\n".join(["image_id,split,fold,label,score_a,score_b", *rows]))
    content = document("report", tmp_path / "net.csv", "--out", tmp_path / "r", "--resamples", 100)
    assert content == json.loads((tmp_path / "r" / "report.json").read_text())
    assert [row["name"] for row in content["methods"]] == ["net", "majority"]


@pytest.mark.slow
def test_audit(workshop: Workshop, tmp_path: Path, document: Callable[..., Any]) -> None:  # noqa: F811
    content = document("audit", workshop.run("probe"), "--out", tmp_path / "a", "--set", "images=12")
    assert content == json.loads((tmp_path / "a" / "audit.json").read_text())
    assert content["tests"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--int8"]])
def test_export(more: list[str], workshop: Workshop, tmp_path: Path, document: Callable[..., Any]) -> None:  # noqa: F811
    content = document("export", workshop.run("probe"), "--out", tmp_path / "b", *more)
    assert content == json.loads((tmp_path / "b" / "parity.json").read_text())
    assert (content["int8"] is not None) == bool(more)


def test_predict_holds_the_rows_or_names_their_file(
    tmp_path: Path, document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_bundle", pretend)
    folder = fill(tmp_path / "in")
    (folder / "notes.txt").write_text("text")
    content = document("predict", "bundle", folder, folder / "00.png")
    assert [row["path"] for row in content["rows"]] == [f"{folder}/{i:02d}.png" for i in range(12)]
    assert (content["images"], content["failed"], content["repeated"], content["out"]) == (12, 2, 1, None)
    assert content["first_failed"][0] == {"path": f"{folder}/02.png", "reason": "damaged picture (bad 2)"}
    assert sum(content["left_out"].values()) == 1
    flagged = sum(bool(row["ood"]) for row in content["rows"])
    out = tmp_path / "s.csv"
    stored = document("predict", "bundle", folder, folder / "00.png", "--out", out)
    assert stored == content | {"out": str(out), "rows": None} and stored["flagged"] == flagged
    assert len(out.read_text().splitlines()) == 13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("index {} --out m.parquet", "no such folder"),
        ("check {}", "no such manifest file"),
        ("report {} --out r", "no such"),
        ("audit {} --out a", "no run there"),
        ("export {} --out b", "no run there"),
        ("predict {} x.png", "no such folder"),
        ("predict {} x.png --format jsonl", "leave out what is for a table"),
        ("predict {} x.png --spreadsheet-safe", "leave out what is for a table"),
    ],
)
def test_a_mistake_prints_one_line_and_no_document(
    words: str, message: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused([*words.format("nowhere").split(), "--json"], capsys)


def test_what_a_library_prints_is_no_part_of_the_document(capsys: Capture) -> None:
    def work(*, announce: Callable[[str], None]) -> dict[str, str]:
        """Work."""
        print("a library's banner")  # noqa: T201
        announce("half done")
        return {"name": "é\x1b\udc80"}

    def show(*_: Any) -> None:
        print("a table")  # noqa: T201

    command = Command("Data", work, show, document=lambda result, given: {"schema": 1, **result, "given": [*given]})
    command._callback()(json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema": 1, "name": "é\x1b\udc80", "given": []} and captured.out.isascii()
    assert captured.err == "a library's banner\nhalf done\n"
    command._callback()(json=False)
    assert capsys.readouterr().out == "a library's banner\na table\n"
