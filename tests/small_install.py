"""A Python with no more than a small install brings: NumPy, Pillow, pydicom, ONNX Runtime and the command line's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ABSENT = (
    "accelerate", "huggingface_hub", "jinja2", "matplotlib", "peft", "pyarrow", "safetensors", "scipy", "sklearn", "threadpoolctl",
    "tokenizers", "torch", "transformers", "yaml",
)  # fmt: skip
"""Packages of the study, as they are imported."""

REPOSITORY = Path(__file__).parents[1]


def run_small(code: str, *, beside: str = "") -> subprocess.CompletedProcess[str]:
    """Run code where none of `ABSENT` can be imported, but the one named `beside`; `tests` can."""
    wall = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in ABSENT if name != beside)
    return subprocess.run(
        [sys.executable, "-c", wall + code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
