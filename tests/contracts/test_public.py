"""What others rely on: public names, shipped configs, prompts, help texts, docs that tell the truth."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Capture

import thoraclip
from thoraclip.cli.app import _EXTRA_OF, COMMANDS, _app_of, run
from thoraclip.cli.command import Command, argument_texts
from thoraclip.config import build_config, field_help
from thoraclip.data.layouts import LAYOUTS
from thoraclip.documents import read_toml
from thoraclip.labels import shipped_prompt_sets
from thoraclip.methods import METHODS
from thoraclip.study import StudyConfig, read_study

REPOSITORY = Path(thoraclip.__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.toml"))
PANELS = {
    "Start": ("demo", "study"),
    "Data": ("index", "check", "select", "split", "join", "overlap", "card", "phantom"),
    "Methods": ("caption", "embed", "zeroshot", "finetune", "baseline", "probe", "trivial"),
    "Judgement": ("report", "audit", "explain"),
    "Deployment": ("merge", "export", "predict", "serve"),
}
NAMES = tuple(command.title for command in COMMANDS)


def test_the_door_is_sorted_complete_and_opens_and_no_module_hides_a_name() -> None:
    assert list(thoraclip.__all__) == sorted(thoraclip.__all__)
    assert dir(thoraclip) == sorted(thoraclip.__all__)
    for name in thoraclip.__all__:
        assert getattr(thoraclip, name).__doc__, name
    assert not {m.name for m in pkgutil.iter_modules(thoraclip.__path__)} & set(dir(thoraclip)), "hidden by a module"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        thoraclip.nothing  # noqa: B018


FUNCTIONS = {name: value for name in thoraclip.__all__ if inspect.isfunction(value := getattr(thoraclip, name))}
PLACES = re.compile(r"\b(Path|File|Files|Images|Model)\b")
"""In the annotation of an argument that names a file or a folder; all but the first of them allow text."""


def test_every_function_takes_text_where_it_takes_a_path() -> None:
    for name, function in FUNCTIONS.items():
        for parameter in inspect.signature(function).parameters.values():
            kind = str(parameter.annotation)
            if "Path" in kind and "Mapping" not in kind:
                assert "str" in kind, f"{name}({parameter.name})"


def _call(function: Any, place: Any, values: dict[str, Any]) -> str:
    """What a function answers where every file and folder is `place`: its error, in words."""
    given = dict(values)
    for parameter in inspect.signature(function).parameters.values():
        if PLACES.search(str(parameter.annotation)) and parameter.default is parameter.empty:
            given.setdefault(parameter.name, place)
    with pytest.raises(thoraclip.ThoraclipError) as caught:
        function(**given)
    return str(caught.value)


READERS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("decode", "open_bundle", "read_captions", "read_embeddings", "read_manifest")},
    "split": {"folds": 3},
    **{name: {} for name in ("read_predictions", "probe", "trivial", "check", "audit", "export", "merge", "report")},
    "read_study": {"settings": {}},
    "run_study": {},
    "embed": {"model": "tiny-clip"},
    "caption": {"captioner": "template"},
    "card": {},
    "serve": {},
    "index": {"layout": "folders"},
    "predict": {"paths": []},
}


@pytest.mark.parametrize("name", READERS)
def test_text_and_runs_are_answered_as_a_path_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = thoraclip.Run("probe", Path("nothing"), Any, {})
    places = ("nothing", Path("nothing"), *((run,) if name not in ("decode", "read_study") else ()))
    answers = [_call(FUNCTIONS[name], place, READERS[name]) for place in places]
    assert len(set(answers)) == 1 and "nothing" in answers[0]


def test_what_is_written_under_a_text_is_read_under_it(
    manifest: thoraclip.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    thoraclip.write_manifest("m.parquet", manifest)
    assert thoraclip.read_manifest("m.parquet").fingerprint == manifest.fingerprint
    captions = thoraclip.caption("m.parquet", captioner="template", everywhere=True, out="c.parquet")
    thoraclip.write_captions("d.parquet", captions)
    assert thoraclip.read_captions("d.parquet").text == captions.text
    thoraclip.pixel_cache(manifest, thoraclip.Preprocess(size=8), "pixels")
    thoraclip.write_check(thoraclip.check("m.parquet"), manifest, "checked")
    thoraclip.write_card("m.parquet", manifest, thoraclip.CardSettings(), "card")
    predictions, _ = thoraclip.run_method("trivial", METHODS["trivial"].config_type(), manifest, "run", cache="cache")
    thoraclip.write_predictions("p.csv", predictions)
    assert thoraclip.read_predictions("p.csv").image_id == predictions.image_id
    assert (
        thoraclip.load_dual_encoder("tiny-clip").preprocess == thoraclip.load_dual_encoder(Path("tiny-clip")).preprocess
    )
    thoraclip.write_phantoms("phantoms", thoraclip.PhantomConfig(images=3, size=64), workers=1)
    assert all((tmp_path / name).exists() for name in ("pixels", "checked/check.md", "card/data-card.md", "phantoms"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.title)
def test_every_argument_of_a_function_is_described_and_stands_in_the_help(command: Command, capsys: Capture) -> None:
    described = command.signature or command.function
    names = set(inspect.signature(described).parameters) - {"self"}
    assert set(argument_texts(described)) == names
    assert run([command.title, "--help"]) == 0
    text = capsys.readouterr().out
    assert command.title in text
    shown = {"settings": "set", "class_name": "class"}
    for name, parameter in inspect.signature(described).parameters.items():
        option = f"--{shown.get(name, name).replace('_', '-')}"
        option = name.upper() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else option
        assert (option in text) is (name not in {"self", "progress", "announce"}), name


def test_every_function_has_a_command_and_stands_in_the_docs() -> None:
    functions = {"run_study" if name == "study" else name for name in NAMES}
    assert functions <= set(thoraclip.__all__)
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    assert not [name for name in functions if f"`{name}`" not in page]


@pytest.mark.parametrize("kind", METHODS)
def test_the_function_of_a_method_has_its_settings_as_keywords(kind: str) -> None:
    parameters = inspect.signature(getattr(thoraclip, kind)).parameters
    for field in dataclasses.fields(METHODS[kind].config_type):
        found = parameters[field.name]
        assert (found.kind, found.default) == (inspect.Parameter.KEYWORD_ONLY, field.default)


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


def test_the_help_names_every_command_under_its_panel(capsys: Capture) -> None:
    assert run(["--help"]) == 0
    _, _, _, *found = re.split(r"─ (\w+) ─", capsys.readouterr().out)
    commands = (re.findall(r"^│ (\w+)  ", text, flags=re.M) for text in found[1::2])
    panels = dict(zip(found[::2], map(sorted, commands), strict=True))
    assert panels == {name: sorted(names) for name, names in PANELS.items()}


def test_the_docs_name_every_command_layout_and_setting() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for name in (*NAMES, *LAYOUTS, *shipped_prompt_sets()):
        assert name in text, name
    for method in METHODS.values():
        for field in dataclasses.fields(method.config_type):
            assert f"`{field.name}`" in text, field.name


def needed(*extras: str) -> set[str]:
    """Names of the packages that the extras ask for; of an empty one, those of the core."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {"": project["dependencies"]} | project["optional-dependencies"]
    return {re.split(r"[\[>=<]", line)[0].lower() for extra in extras for line in asked[extra]} - {"thoraclip"}


def test_constraints_pin_what_the_core_and_the_study_need() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().lower().splitlines()
    pins = {line.split("==")[0] for line in lines if "==" in line}
    assert needed("", "dicom", "study", "dev", "docs") <= pins


def test_one_command_alone_is_prepared_and_all_for_help_or_a_wrong_name() -> None:
    for name in NAMES:
        (one,) = _app_of(["--version", name, "study", "--help"]).registered_commands
        assert one.name == name
    for words in ([], ["--help"], ["prdict"], ["--version"]):
        assert len(_app_of(words).registered_commands) == len(NAMES) > 1


@pytest.mark.parametrize("extra", ["study", "export", "serve"])
def test_a_missing_package_is_answered_with_its_extra(extra: str) -> None:
    modules = {name: name.replace("-", "_") for name in needed(extra)} | {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    assert {_EXTRA_OF.get(modules[name]) for name in needed(extra)} == {extra}


def test_no_forbidden_package_is_asked_for() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("torchvision", "torchaudio", "timm", "open_clip", "open-clip", "monai", "pylibjpeg-libjpeg"):
        assert f'"{name}' not in text


def test_the_page_of_settings_is_up_to_date() -> None:
    page = runpy.run_path(str(REPOSITORY / "scripts" / "write_settings.py"))["page"]()
    kept = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert kept == page, "run: python scripts/write_settings.py"
