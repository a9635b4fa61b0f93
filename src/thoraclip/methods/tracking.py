"""Trackers: MLflow, TensorBoard, trackio and Weights & Biases, by the classes of Accelerate.

A run folder is complete without them. While a network is trained, its losses and validations go to one run in each
tracker. When the run is finished, three things follow: the test metrics with the ends of their 95 % intervals, the
same numbers as a table, and the model card. No image and no score of a single image is sent.

`trackers.json` in the folder names the trackers' runs. An interrupted training goes on in these, and results are sent
once.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from thoraclip.cards.model_card import judge_run
from thoraclip.documents import kept_json
from thoraclip.errors import ConfigError, MissingExtraError, TrainingError, did_you_mean, first_line
from thoraclip.runs import digest, write_json
from thoraclip.tables.predictions import Predictions

__all__ = [
    "FILE",
    "TRACKERS",
    "Results",
    "TrackedRun",
    "Tracker",
    "require_trackers",
    "results_of",
    "send_run",
]

FILE = "trackers.json"
_PROJECT, _RUN = "thoraclip", "run"
_COLUMNS = ("method", "metric", "value", "low", "high")


@dataclass(frozen=True)
class Results:
    """What a tracker gets of a finished run, beside its losses."""

    values: Mapping[str, float]  # as `test/accuracy`, `test/accuracy_low`, `test/accuracy_high`
    table: Sequence[Sequence[Any]]  # the same: rows of method, metric, value, low, high; `None` where unknown
    text: str  # Markdown: the model card, or the report
    files: Sequence[Path] = ()  # for trackers that keep files

    @property
    def markdown(self) -> str:
        """The table."""
        rows = [
            ["" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row] for row in self.table
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in (_COLUMNS, ["---"] * len(_COLUMNS), *rows))


@dataclass(frozen=True)
class Tracker:
    """One entry of the registry."""

    packages: tuple[str, ...]  # one of them must be installed
    options: Callable[[str, str | None], Mapping[str, Any]]  # of Accelerate's class, for (name of a run, its kept id)
    send: Callable[[Any, Results], None]  # to Accelerate's tracker
    identify: Callable[[Any], str | None] = lambda _: None  # id of a run that has begun, where its name is not enough
    finish: Callable[[Any], None] = lambda tracker: tracker.finish()


def _to_mlflow(tracker: Any, results: Results) -> None:
    import mlflow

    tracker.log(results.values)
    columns = {name: [row[n] for row in results.table] for n, name in enumerate(_COLUMNS)}
    mlflow.log_table(columns, "results.json")
    for file in results.files:
        tracker.log_artifact(str(file))


def _to_tensorboard(tracker: Any, results: Results) -> None:
    tracker.log({**results.values, "results": results.markdown, "card": results.text})


def _to_trackio(tracker: Any, results: Results) -> None:
    import trackio

    table = trackio.Table(columns=list(_COLUMNS), data=[list(row) for row in results.table])
    tracker.log({**results.values, "results": table, "card": trackio.Markdown(results.text)})


def _finish_trackio(_: Any) -> None:
    import trackio

    trackio.finish()  # which also forgets the run, so that it is not finished once more at the end of the process


def _to_wandb(tracker: Any, results: Results) -> None:
    tracker.log(results.values)
    tracker.log_table("results", columns=list(_COLUMNS), data=[list(row) for row in results.table])
    for file in results.files:
        tracker.tracker.save(str(file), base_path=str(file.parent), policy="now")


TRACKERS: Mapping[str, Tracker] = {
    "mlflow": Tracker(
        ("mlflow",),
        lambda name, kept: {"run_id": kept} if kept else {"run_name": name},
        _to_mlflow,
        identify=lambda tracker: str(tracker.tracker.info.run_id),
    ),
    "tensorboard": Tracker(
        ("tensorboard", "tensorboardX"),
        # tensorboardX names its file by the second, and writes over one of the same second
        lambda *_: {"filename_suffix": f".{secrets.token_hex(4)}"},
        _to_tensorboard,
    ),
    "trackio": Tracker(
        ("trackio",),
        lambda name, _: {"name": name, "resume": "allow", "embed": False},
        _to_trackio,
        finish=_finish_trackio,
    ),
    "wandb": Tracker(("wandb",), lambda name, _: {"id": name, "name": name, "resume": "allow"}, _to_wandb),
}


def require_trackers(names: Iterable[str], *, installed: bool = False) -> None:
    """Raise ConfigError for the first name that is no tracker, MissingExtraError for one that is not `installed`."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"unknown tracker '{name}'{did_you_mean(name, TRACKERS)}")
        if installed and not any(find_spec(package) for package in TRACKERS[name].packages):
            raise MissingExtraError(TRACKERS[name].packages[-1], "track")


class TrackedRun:
    """One run in each of some trackers. As a context it begins them, or goes on with those of `trackers.json`.

    Args:
        names: in `TRACKERS`; with none, nothing is done.
        folder: the run folder; trackers that write files put them there.
        fingerprint: what the run's result depends on. With another one than in `trackers.json` new runs begin.
        settings: of the run, for new runs.

    Raises:
        ConfigError: (by the context) a tracker cannot begin.
    """

    def __init__(self, names: Sequence[str], folder: Path, *, fingerprint: str, settings: Mapping[str, Any]) -> None:
        require_trackers(names, installed=True)
        self._names, self._folder, self._settings = names, folder, settings
        self._open: dict[str, Any] = {}
        self._state: dict[str, Any] = {"key": digest([list(names), fingerprint]), "ids": {}, "sent": None}
        kept = kept_json(folder / FILE)
        self._is_new = kept.get("key") != self._state["key"]
        name = f"{'-'.join(folder.resolve().parts[-2:])}-{secrets.token_hex(4)}"  # two runs may have one folder's name
        self._state |= {"run": name} if self._is_new else kept

    def __enter__(self) -> Self:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers that it is used
        try:
            with redirect_stdout(sys.stderr):  # trackio says where it writes
                for name in self._names:
                    self._begin(name)
        except Exception as error:  # each tracker has its own: no account, no network, no room
            self.__exit__()
            mend = "mend it or leave them out" if self._is_new else f"mend it, or remove {self._folder / FILE}"
            raise ConfigError(f"trackers = {list(self._names)}: cannot begin ({first_line(error)}); {mend}") from error
        if self._names:
            write_json(self._folder / FILE, self._state)
        return self

    def _begin(self, name: str) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # which trackers ask whether they are in the first process
        kind, entry = LOGGER_TYPE_TO_CLASS[name], TRACKERS[name]
        place = (str(self._folder),) if kind.requires_logging_directory else ()
        tracker = kind(_PROJECT, *place, **entry.options(self._state["run"], self._state["ids"].get(name)))
        tracker.start()
        self._open[name] = tracker
        self._state["ids"][name] = entry.identify(tracker)
        if self._is_new:
            plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in self._settings.items()}
            tracker.store_init_configuration(plain)

    def __exit__(self, *error: object) -> None:
        for name, tracker in self._open.items():
            with redirect_stdout(sys.stderr), suppress(Exception):  # all was sent; one that is not ended loses nothing
                TRACKERS[name].finish(tracker)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """The values of a step; raises TrainingError where a tracker fails."""
        for name, tracker in self._open.items():
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:
                raise TrainingError(
                    f"tracker {name} failed at step {step} ({first_line(error)}); mend it, or leave it out, and run "
                    "the same command again to go on"
                ) from error

    def send(self, name: str, results: Callable[[], Results], log: Callable[[str], None]) -> None:
        """Begin, send the results of a finished run, unless those of this name were sent before, and end.

        A tracker that fails does not lose the run: `log` gets a line.
        """
        if self._state["sent"] == name:
            return
        try:
            with self:
                found = results()
                for tracker, opened in self._open.items():
                    TRACKERS[tracker].send(opened, found)
                write_json(self._folder / FILE, self._state | {"sent": name})
        except Exception as error:  # as above
            again = "all is written, and the same command tries again"
            log(f"warning: trackers got no results ({first_line(error)}); {again}")


def send_run(
    config: Any, predictions: Predictions, folder: Path, *, of_a_fold: str, fingerprint: str, log: Callable[[str], None]
) -> None:
    """Send the results of a finished training.

    Args:
        config: its settings, with `trackers`.
        predictions: of its test images.
        folder: its run folder, with the model card.
        of_a_fold, fingerprint: what the result of a fold, and that of the run, depends on.
        log: gets a line where a tracker fails.
    """
    tracked = TrackedRun(config.trackers, folder, fingerprint=of_a_fold, settings=dataclasses.asdict(config))

    def results() -> Results:
        report, _ = judge_run(_RUN, _RUN, predictions)
        return results_of(report, {_RUN: "test"}, folder / "README.md")

    tracked.send(fingerprint, results, log)


def results_of(
    report: Mapping[str, Any], prefixes: Mapping[str, str], text: Path, more_files: Sequence[Path] = ()
) -> Results:
    """The metrics of a report, by method.

    Args:
        report: content of `report.json`; empty where nothing could be judged.
        prefixes: method of the report -> what the names of its metrics begin with; others are left out.
        text: Markdown file.
        more_files: for trackers that keep files, beside the text.
    """
    values, table = dict[str, float](), list[list[Any]]()
    for row in report.get("methods", ()):
        prefix = prefixes.get(row["name"])
        for metric, found in (row.get("metrics") or {}).items() if prefix else ():
            if found and found["value"] is not None:
                table.append([row["name"], metric, found["value"], found["low"], found["high"]])
                ends = {"": found["value"], "_low": found["low"], "_high": found["high"]}
                values |= {f"{prefix}/{metric}{end}": value for end, value in ends.items() if value is not None}
    return Results(values, table, text.read_text(encoding="utf-8"), [text, *more_files])
