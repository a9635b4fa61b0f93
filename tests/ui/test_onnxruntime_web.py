"""docs/recipes.md: `classify.js` by onnxruntime-web, in Node. `make test-ui` installs it beside the tests' packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.recipes import ANY_IMAGE, make_study, snippet

import thoraclip
from thoraclip.imaging import fit

_RUN = """
import { readFile } from "node:fs/promises";
import ort from "onnxruntime-web";
import { classify, openBundle } from "./classify.js";

const bundle = await openBundle(ort, process.argv[2], async (path) => new Uint8Array(await readFile(path)));
console.log(JSON.stringify(await classify(ort, bundle, new Uint8Array(await readFile("greys")))));
process.exit(0);
"""


def need_modules() -> tuple[str, Path]:
    """(Node, the folder with onnxruntime-web); skips where one of them is missing."""
    node = shutil.which("node")
    if not node:
        pytest.skip("no Node: install one")
    modules = Path(os.environ.get("NODE_PATH") or Path(sys.prefix) / "npm" / "node_modules")
    if not (modules / "onnxruntime-web").is_dir():
        pytest.skip(f"no onnxruntime-web in {modules}: npm install --prefix {modules.parent} onnxruntime-web@1.30.0")
    return node, modules


def test_a_page_gives_the_scores_of_the_bundle(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    node, modules = need_modules()
    study = make_study(tmp_path_factory.getbasetemp())
    bundle = thoraclip.open_bundle(study / "bundle")
    (tmp_path / "greys").write_bytes(fit(thoraclip.decode(study / ANY_IMAGE).pixels, bundle.preprocess).tobytes())
    (tmp_path / "classify.js").write_text(snippet("A web page, without a server", "js"))
    (tmp_path / "run.mjs").write_text(_RUN)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(modules)
    done = subprocess.run(
        [node, "run.mjs", str(study / "bundle")], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    scores = bundle.classify(study / ANY_IMAGE).scores
    np.testing.assert_allclose([found[name] for name in bundle.labels.names], [scores[name] for name in bundle.labels.names], atol=1e-6)  # fmt: skip
    page = snippet("A web page, without a server", "html")
    assert all(f"function {name}(" in (tmp_path / "classify.js").read_text() for name in ("classify", "openBundle"))
    assert 'import { classify, openBundle } from "./classify.js"' in page and "onnxruntime-web@1.30.0/" in page
