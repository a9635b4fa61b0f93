"""A bar in a notebook, a line that is rewritten on a terminal, few lines elsewhere."""

from __future__ import annotations

import io
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.conftest import Capture

from thoraclip.api import progress
from thoraclip.api.hooks import hooks


class Clock:
    """A clock that a test turns."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A notebook's kernel; what it shows: (how, HTML)."""
    seen: list[tuple[str, str]] = []
    handle = SimpleNamespace(update=lambda bar: seen.append(("update", bar._repr_html_())))

    def display(bar: Any, *, display_id: bool) -> Any:
        assert display_id
        seen.append(("display", bar._repr_html_()))
        return handle

    kernel = ModuleType("IPython")
    kernel.get_ipython = lambda: SimpleNamespace(kernel=True)  # type: ignore[attr-defined]
    shows = ModuleType("IPython.display")
    shows.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", shows)
    return seen


def test_rate_and_time_left_are_those_of_the_stage(clock: Clock) -> None:
    pace = progress.Pace()
    assert pace(10, 100) == "images: 10/100", "one moment has no rate"
    clock.now += 10
    assert pace(60, 100) == "images: 60/100, 5/s, 8 s left"
    clock.now += 10
    assert pace(100, 100) == "images: 100/100, 4/s"
    clock.now += 1000
    assert pace(200, 300) == "images: 200/300", "another total is another stage"
    clock.now += 10
    assert pace(100, 300) == "images: 100/300", "and so is a smaller count"
    clock.now += 10
    assert pace(120, 0) == "images: 120"
    clock.now += 10
    assert pace(150, 0) == "images: 150, 3/s", "of an unknown total no time is left"


def test_a_notebook_has_one_bar_that_is_redrawn(clock: Clock, shown: list[tuple[str, str]], capsys: Capture) -> None:
    draw, log = hooks(True, None)
    assert draw is not None
    log("fold 1 of 3, epoch <2> (validation macro F1 0.5)")
    for done in range(1, 11):
        clock.now += 0.03
        draw(done, 10)
    assert [how for how, _ in shown] == ["display", "update", "update", "update"], "not for every image"
    assert 'value="1" max="10"' in shown[0][1] and 'value="10" max="10"' in shown[-1][1]
    assert "images: 10/10" in shown[-1][1]
    assert all("fold 1 of 3, epoch &lt;2&gt;" in text and "validation" not in text for _, text in shown)
    draw(11, 0)
    clock.now += 1
    draw(12, 0)
    assert " value=" not in shown[-1][1] and "images: 12" in shown[-1][1], "an unknown total has no share"
    assert capsys.readouterr() == ("fold 1 of 3, epoch <2> (validation macro F1 0.5)\n", "")


def test_ipython_without_a_kernel_is_no_notebook(shown: list[tuple[str, str]]) -> None:
    assert progress.in_notebook()
    for shell in (None, SimpleNamespace()):
        sys.modules["IPython"].get_ipython = lambda found=shell: found  # type: ignore[attr-defined]
        assert not progress.in_notebook()
    del sys.modules["IPython"]
    assert not progress.in_notebook()


def test_a_terminal_has_one_line_for_each_stage(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    lines = progress.Lines()
    clock.now += 1
    lines.draw(1, 3)
    lines.draw(2, 3)  # at once
    lines.write("look")
    lines.draw(3, 3)
    lines.write("done")
    assert re.sub(" +\n", "\n", terminal.getvalue()) == "\rimages: 1/3\nlook\n\rimages: 3/3\ndone\n"


def test_elsewhere_lines_are_few(clock: Clock, capsys: Capture) -> None:
    lines = progress.Lines()
    for done in range(60):
        clock.now += 0.5
        lines.draw(done, 0)
    assert capsys.readouterr().err == "images: 19, 2/s\nimages: 39, 2/s\nimages: 59, 2/s\n"
    lines.draw(60, 60)
    lines.write("done")
    assert capsys.readouterr().err == "images: 60/60\ndone\n"
