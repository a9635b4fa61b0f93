"""What the tests of trackers run in a process of its own: trackers keep where they write for as long as that lasts."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from thoraclip.cli.app import run

CALLED: list[str] = []
"""Addresses that the process tried to reach."""


def _refuse(*address: Any, **_: Any) -> Any:
    CALLED.append(str(address))
    raise OSError("no network")


def commands(*commands: list[str]) -> int:
    """Run commands without a network, and print what MLflow and trackio hold after each."""
    socket.getaddrinfo = socket.socket.connect = _refuse  # type: ignore[assignment, method-assign]
    for command in commands:
        code = run(command)
        sys.stdout.write(
            json.dumps({"code": code, "called": CALLED, "mlflow": _mlflow(), "trackio": _trackio()}) + "\n"
        )
    return 0


def _mlflow() -> list[dict[str, Any]]:
    import mlflow

    client, found = mlflow.MlflowClient(), []
    for one in mlflow.search_runs(search_all_experiments=True, output_format="list"):
        run_id = one.info.run_id
        files = {
            f.path: mlflow.artifacts.load_text(f"{one.info.artifact_uri}/{f.path}")
            for f in client.list_artifacts(run_id)
        }
        history = {
            name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in one.data.metrics
        }
        found.append(
            {
                "name": one.info.run_name,
                "status": one.info.status,
                "settings": one.data.params,
                "files": files,
                "history": history,
            }
        )
    return found


def _trackio() -> dict[str, list[dict[str, Any]]]:
    from trackio.sqlite_storage import SQLiteStorage

    return {name: SQLiteStorage.get_logs("thoraclip", name) for name in SQLiteStorage.get_runs("thoraclip")}
