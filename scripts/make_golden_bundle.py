"""Make the bundle of schema 1 that later versions must read: a tiny random CLIP with a probe on drawn pictures.

    python scripts/make_golden_bundle.py tests/bundle/golden/bundle-1

Run once for each schema, never again for the same one: the point is that old files stay readable.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.bundle.conftest import Workshop

from thoraclip.bundle.opening import open_bundle


def main(out: Path) -> None:
    """Write `bundle/` and `answers.json`."""
    if out.exists():
        sys.exit(f"{out} is there already; a golden file is not made twice")
    with tempfile.TemporaryDirectory() as work:
        made = Workshop(Path(work)).bundle("probe")
        shutil.copytree(made, out / "bundle")
    opened = open_bundle(out / "bundle")
    greys, _ = opened.bundle.self_test()
    found = [opened.classify_grey(grey) for grey in greys]
    answers = [{"label": f.label, "scores": f.scores, "set": list(f.set or ()), "ood": f.ood} for f in found]
    versions = opened.bundle.facts["provenance"]["versions"]
    (out / "answers.json").write_text(json.dumps({"versions": versions, "answers": answers}, indent=2) + "\n")
    print(f"{out}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
