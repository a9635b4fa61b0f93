"""Draw the pictures of the page that the docs show, from phantoms alone.

    python scripts/screenshots.py docs/images [--work DIR]

Needs `thoraclip[study,export,serve]`, Playwright, and a Chromium (`$CHROMIUM`, or one on the PATH). Bundles are made
in DIR and used again if they are there.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.other_parts import draw_other_phantom
from scripts.served import Served
from tests.imaging.files import encoded
from tests.ui.conftest import ARGUMENTS, Visit

from thoraclip.data.phantom import draw_phantom

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
COLOURS = 256
ALONE = ("--threads", "1")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        work = asked.work or Path(scratch)
        bundles = make_bundles(work)
        browser = play.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        with Served(bundles[0], *ALONE) as one, Served(bundles[0], *ALONE, "--beside", str(bundles[1])) as two:
            for name, scene, size, scheme in DOCUMENTED:
                address = (two if name == "both" else one).address
                draw(browser, asked.out / f"page-{name}.png", address, scene, size, scheme)
        browser.close()


def make_bundles(work: Path) -> tuple[Path, Path]:
    """`probe` and `zeroshot`, of the shipped tiny CLIP on 420 phantoms; made the first time."""
    work.mkdir(parents=True, exist_ok=True)
    images, manifest = work / "phantoms", work / "phantoms.parquet"
    if not manifest.exists():
        call("phantom", images, "--images", 420, "--size", 320, "--difficulty", 0, "--seed", 5)
        call("index", images, "--layout", "covid-qu-ex", "--out", manifest)
    for kind, more in (("probe", ["--thumbnails", 90]), ("zeroshot", [])):
        if not (work / kind).exists():
            call(kind, manifest, "--out", work / f"{kind}-run", "--set", "model=tiny-clip")
            call("export", work / f"{kind}-run", "--manifest", manifest, "--out", work / kind, *more)
    return work / "probe", work / "zeroshot"


def call(*words: object) -> None:
    """Run a command of thoraclip."""
    subprocess.run([sys.executable, "-m", "thoraclip", *map(str, words)], check=True)


def draw(browser: Browser, file: Path, address: str, scene: Callable[[Visit], None], size: str, scheme: str) -> None:
    """One picture, in few colours."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page.set_default_timeout(60_000)
    scene(Visit(page, address).open())
    page.wait_for_timeout(300)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    few = image.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size:,} bytes")
    page.close()


def result(visit: Visit) -> None:
    """A phantom of a chest."""
    visit.show(
        encoded(
            Image.fromarray(draw_phantom("COVID-19", rng=np.random.default_rng(12), size=384, difficulty=0.0).pixels)
        ),
        name="phantom.png",
    )


def ood(visit: Visit) -> None:
    """A phantom of something else."""
    visit.show(
        encoded(Image.fromarray(draw_other_phantom("hand", rng=np.random.default_rng(2), size=384))), name="phantom.png"
    )


DOCUMENTED = (
    ("result", result, "wide", "light"),
    ("ood", ood, "wide", "dark"),
    ("both", result, "wide", "light"),
    ("phone", result, "narrow", "dark"),
)


if __name__ == "__main__":
    main()
