"""Shell completion: of commands, options, the names that they take, and settings; by the protocol that shells speak."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import Capture

from thoraclip.cli import command
from thoraclip.cli.app import COMMANDS, main, run
from thoraclip.cli.command import _REGISTRIES, _choices, argument_texts
from thoraclip.data.layouts import LAYOUTS
from thoraclip.heatmaps import MAPS
from thoraclip.methods.probe import Config


def completed(words: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, *, shell: str = "bash") -> set[str]:
    """What a shell is given for a command line whose last word is incomplete."""
    monkeypatch.setenv("_THORACLIP_COMPLETE", f"complete_{shell}")
    place = (
        {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        if shell == "bash"
        else {"_TYPER_COMPLETE_ARGS": words}
    )
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([])
    captured = capsys.readouterr()
    assert ended.value.code == 0 and captured.err == ""
    return set(captured.out.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("thoraclip s", {"study", "select", "split", "serve"}),
        ("thoraclip --show", {"--show-completion"}),
        ("thoraclip export --js", {"--json"}),
        ("thoraclip report a.csv --pre", {"--prevalence"}),
        ("thoraclip index images --layout ", set(LAYOUTS)),
        ("thoraclip explain RUN IMAGE --method s", {name for name in MAPS if name.startswith("s")}),
        ("thoraclip embed m.parquet --geometry s", {"squash"}),
        (
            "thoraclip probe m.parquet --set sol",
            {f"{name}=" for name in Config.__dataclass_fields__ if name.startswith("sol")},
        ),
        ("thoraclip probe m.parq", set()),  # bash then names files
        ("thoraclip nothing --", {"--help", "--install-completion", "--show-completion", "--version"}),
    ],
)
def test_bash_is_told_what_goes_on(
    words: str, expected: set[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(words, capsys, monkeypatch) == expected


@pytest.mark.parametrize(("shell", "found"), [("fish", "--format"), ("zsh", '"--format":"csv')])
def test_other_shells_too(shell: str, found: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert any(found in word for word in completed("thoraclip predict BUNDLE --form", capsys, monkeypatch, shell=shell))


def test_every_registry_belongs_to_an_option_and_can_be_read() -> None:
    options = {name for one in COMMANDS for name in argument_texts(one.signature or one.function)}
    assert _REGISTRIES.keys() <= options
    for name in _REGISTRIES:
        choices = _choices(name, "str")
        assert choices is not None and all(isinstance(choice, str) for choice in choices())
    assert _choices("model", "Model") is None


def test_an_extra_that_is_not_installed_completes_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(command, "import_module", fail)
    assert completed("thoraclip index images --layout ", capsys, monkeypatch) == set()


def test_the_script_for_bash_asks_this_command(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sourced in a real bash, it completes by whatever `thoraclip` is on the path."""
    monkeypatch.setenv("_THORACLIP_COMPLETE", "source_bash")  # `--show-completion` asks which shell started it
    with pytest.raises(SystemExit):
        main([])
    monkeypatch.undo()
    script = capsys.readouterr().out
    assert "_THORACLIP_COMPLETE=complete_bash" in script
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    place = tmp_path / "thoraclip"
    place.write_text(f'#!/bin/sh\nexec {sys.executable} -m thoraclip "$@"\n')
    place.chmod(0o755)
    ask = (
        'COMP_WORDS=(thoraclip pro) COMP_CWORD=1; _thoraclip_completion thoraclip pro thoraclip; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", f"PATH={tmp_path}:$PATH\n{script}\n{ask}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("probe", "")


def test_the_options_stand_in_the_help(capsys: Capture) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--install-completion" in text and "--show-completion" in text
    assert run(["probe", "--help"]) == 0
    assert "completion" not in capsys.readouterr().out
