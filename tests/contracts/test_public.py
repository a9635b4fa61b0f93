"""What others rely on: public names, shipped configs, prompts, help texts, docs that tell the truth."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

import thoraclip
from thoraclip.cli.app import _EXTRA_OF, run
from thoraclip.config import build_config, field_help, read_toml
from thoraclip.data.layouts import LAYOUTS
from thoraclip.labels import load_prompts, shipped_prompt_sets
from thoraclip.methods import METHODS
from thoraclip.study import StudyConfig, read_study

REPOSITORY = Path(thoraclip.__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.toml"))
COMMANDS = (
    "demo",
    "study",
    "index",
    "check",
    "split",
    "card",
    "phantom",
    "caption",
    "embed",
    "zeroshot",
    "finetune",
    "probe",
    "report",
)


def test_the_door_is_sorted_complete_and_opens() -> None:
    assert list(thoraclip.__all__) == sorted(thoraclip.__all__)
    assert dir(thoraclip) == sorted(thoraclip.__all__)
    for name in thoraclip.__all__:
        assert getattr(thoraclip, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        thoraclip.nothing  # noqa: B018


def test_there_are_configs_for_every_method() -> None:
    assert {path.parent.name for path in CONFIGS} == {*METHODS, "studies"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_a_shipped_config_loads_and_says_what_it_is_for(path: Path) -> None:
    head = path.read_text(encoding="utf-8").splitlines()
    assert head[0].startswith("# Purpose: ")
    assert head[1].startswith("# Launch:  thoraclip ")
    assert path.relative_to(REPOSITORY).as_posix() in head[1]
    if path.parent.name == "studies":
        config, methods = read_study(path, {})
        assert isinstance(config, StudyConfig)
        assert methods
    else:
        build_config(METHODS[path.parent.name].config_type, read_toml(path), where=str(path))


@pytest.mark.parametrize("kind", [*METHODS, "study"])
def test_every_setting_has_help(kind: str) -> None:
    config = StudyConfig if kind == "study" else METHODS[kind].config_type
    assert {f.name for f in dataclasses.fields(config)} == set(field_help(config))


@pytest.mark.parametrize("name", shipped_prompt_sets())
def test_shipped_prompts_describe_themselves(name: str) -> None:
    path = REPOSITORY / "src" / "thoraclip" / "prompts" / f"{name}.toml"
    assert tomllib.loads(path.read_text(encoding="utf-8"))["description"]
    for label in ("COVID-19", "Non-COVID", "Normal", "covid", "pneumonia", "a class of my own"):
        assert all(prompt == prompt.strip() and "  " not in prompt for prompt in load_prompts(name).for_class(label))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert command in capsys.readouterr().out


def test_the_help_names_every_command_under_its_panel(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    panels = re.findall(r"─ (\w+) ─", text)
    assert panels[1:] == ["Start", "Data", "Methods", "Judgement"]
    assert sorted(re.findall(r"^│ (\w+)  ", text, flags=re.M)) == sorted(COMMANDS)


def test_the_docs_name_every_command_layout_and_setting() -> None:
    text = "\n".join(
        p.read_text(encoding="utf-8") for p in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    )
    for name in (*COMMANDS, *LAYOUTS, *shipped_prompt_sets()):
        assert name in text, name
    for method in METHODS.values():
        for field in dataclasses.fields(method.config_type):
            assert f"`{field.name}`" in text, field.name


def test_constraints_pin_what_the_core_and_the_study_need() -> None:
    pins = {
        line.split("==")[0].lower()
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"] + [
        r for e in ("dicom", "study", "dev", "docs") for r in project["optional-dependencies"][e]
    ]
    names = {re.split(r"[\[>=<]", r)[0].lower() for r in needed} - {"thoraclip"}
    assert names <= pins


def test_a_missing_package_of_the_study_is_answered_with_its_extra() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[\[>=<]", r)[0].lower() for r in project["optional-dependencies"]["study"]} - {"thoraclip"}
    assert {name.replace("scikit-learn", "sklearn") for name in names} <= set(_EXTRA_OF)


def test_no_forbidden_package_is_asked_for() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("torchvision", "torchaudio", "timm", "open_clip", "open-clip", "monai", "pylibjpeg-libjpeg"):
        assert f'"{name}' not in text


def test_the_page_of_settings_is_up_to_date() -> None:
    import runpy

    page = runpy.run_path(str(REPOSITORY / "scripts" / "write_settings.py"))["page"]()
    assert (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8") == page, (
        "run: python scripts/write_settings.py"
    )
