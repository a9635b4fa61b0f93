"""ONNX Runtime, imported through here alone, and sessions on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if "onnxruntime" not in sys.modules:  # it reports to its makers from 1.32 on
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime", "open_session"]


def open_session(model: Path | bytes, options: Any = None, **more: Any) -> Any:
    """A session on the CPU that does not warn; `options` and what else it takes are those of ONNX Runtime."""
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 3
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"], **more)
