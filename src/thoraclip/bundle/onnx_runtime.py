"""ONNX Runtime, which is imported through here alone: from 1.32 on it keeps a database and reports to its makers,
unless the environment says no before it is loaded."""

from __future__ import annotations

import os
import sys

if "onnxruntime" not in sys.modules:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
