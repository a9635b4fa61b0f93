"""A browser on a real server with small real bundles; what is missing for that is told by a skip."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from scripts.served import Served
from tests.imaging.files import dicom, encoded

from thoraclip.bundle.export import export_bundle
from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, draw_phantom, write_phantoms
from thoraclip.methods.original import load_original
from thoraclip.methods.predictors import read_run
from thoraclip.methods.probe import Config as ProbeConfig
from thoraclip.methods.running import run_method
from thoraclip.methods.zeroshot import Config as ZeroshotConfig

FEWER = ("gpu", "background-networking", "component-update", "sync")
ARGUMENTS = ["--no-sandbox", "--no-first-run", *(f"--disable-{one}" for one in FEWER)]
SECONDS = 30
_WATCH = """
addEventListener("securitypolicyviolation", e => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`));
"""


def need_browser() -> str:
    """Where Chromium is; skips where Playwright or Chromium are missing."""
    pytest.importorskip("playwright", reason="these tests drive a browser by Playwright")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium: install one, or name it in CHROMIUM")
    return found


@dataclass
class Bundles:
    """A probe with thumbnails, and a zero-shot classifier, of the same phantoms."""

    probe: Path
    zeroshot: Path


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Made once for all processes of tests."""
    need_browser()
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ui"
    with FileLock(f"{root}.lock"):
        if not (root / "zeroshot").is_dir():
            config = PhantomConfig(images=90, size=96, seed=3, difficulty=0.0, fractions=(0.4, 0.4, 0.2))
            write_phantoms(root / "phantoms", config, workers=1)
            manifest = index(root / "phantoms", layout="covid-qu-ex").manifest
            probe = ProbeConfig(model="tiny-clip", l2_steps=3, precision="fp32")
            for kind, settings in (("probe", probe), ("zeroshot", ZeroshotConfig(model="tiny-clip", precision="fp32"))):
                run_method(kind, settings, manifest, root / f"{kind}-run")
                original = load_original(read_run(root / f"{kind}-run"), manifest)
                export_bundle(original, root / kind, thumbnails=12 if kind == "probe" else 0)
    return Bundles(root / "probe", root / "zeroshot")


class Server(Served):
    """`thoraclip serve` in a process of its own, whose home, temporary folder and working folder are new.

    Args:
        root: where these folders are made.
        bundle: folder.
        arguments: more of them.
    """

    def __init__(self, root: Path, bundle: Path, *arguments: str) -> None:
        self.folders = [root / name for name in ("home", "temporary", "here")]
        for folder in self.folders:
            folder.mkdir(parents=True)
        self._bundle, self._arguments = bundle, ("--threads", "1", *arguments)
        self.start()

    def start(self, port: int = 0) -> None:
        """Start it, the first time at any port."""
        home, temporary, here = self.folders
        environment = {"HOME": str(home), "TMPDIR": str(temporary)}
        super().__init__(self._bundle, *self._arguments, "--port", str(port), environment=environment, cwd=here)

    @property
    def written(self) -> list[str]:
        """Files and folders that it made."""
        return [str(path) for folder in self.folders for path in folder.rglob("*")]


@pytest.fixture(scope="session")
def server(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The probe alone."""
    with Server(tmp_path_factory.mktemp("server"), bundles.probe) as made:
        yield made


@pytest.fixture(scope="session")
def pair(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Both bundles, and requests of 2 MB at most."""
    words = ("--beside", str(bundles.zeroshot), "--set", "megabytes=2")
    with Server(tmp_path_factory.mktemp("pair"), bundles.probe, *words) as made:
        yield made


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    chromium = need_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


@dataclass
class Visit:
    """A tab on the page, and all that it did.

    Args:
        tab: of Playwright.
        address: of the server.
        asked: method and address of every request.
        complaints: errors of the console, of scripts, and of the content security policy.
    """

    tab: Any
    address: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self) -> Visit:
        """Load the page."""
        self.tab.on("request", lambda request: self.asked.append(f"{request.method} {request.url}"))
        self.tab.on("console", lambda told: self.complaints.append(told.text) if told.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("filechooser", lambda _: None)  # the browser asks the test, and does so before a key can come
        self.tab.add_init_script(_WATCH)
        self.tab.goto(self.address)
        self.tab.locator("[data-bundle]").first.wait_for()
        return self

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of words.js answers."""
        code = "async ([name, told]) => (await import(new URL('page/words.js', document.baseURI)))[name](...told)"
        return self.tab.evaluate(code, [function, arguments])

    def give(self, data: bytes, *, name: str = "picture.png") -> None:
        """Choose a file."""
        self.tab.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})

    def wait_for_maps(self) -> None:
        """Until every heat map is there."""
        for heat in self.tab.locator("[data-heat]").all():
            heat.wait_for()

    def show(self, data: bytes, *, name: str = "picture.png") -> None:
        """Choose a file and wait for its maps."""
        self.give(data, name=name)
        self.wait_for_maps()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Let the tab go on until something is so."""
        until = time.monotonic() + SECONDS
        while not is_so():
            assert time.monotonic() < until
            self.tab.wait_for_timeout(20)

    def forgive(self, part: str, *, times: int = 1) -> None:
        """So many complaints or more must come, all with this part: the status of a refusal, which Chromium notes."""
        self.wait_until(lambda: len(self.complaints) >= times)
        assert [one for one in self.complaints if part not in one] == []
        self.complaints.clear()

    @property
    def scores(self) -> list[dict[str, str]]:
        """Of each table: class -> score with 6 decimals."""
        read = "rows => Object.fromEntries(rows.map(row => [row.dataset.label, row.dataset.score]))"
        return [one.locator("tbody tr").evaluate_all(read) for one in self.tab.get_by_role("table").all()]

    @property
    def foreign(self) -> list[str]:
        """Requests to other hosts."""
        place = urlsplit(self.address)
        own = tuple(f"{scheme}http://{place.netloc}/" for scheme in ("", "blob:"))
        return [one for one in self.asked if not one.split(" ", 1)[1].startswith((*own, "data:"))]


def visiting(browser: Any, address: str, **options: Any) -> Iterator[Visit]:
    """A tab that must end without complaints and without foreign requests."""
    tab = browser.new_page(**options)
    tab.set_default_timeout(1000 * SECONDS)
    visit = Visit(tab, address)
    yield visit.open()
    tab.close()
    assert visit.complaints == []
    assert visit.foreign == []


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Visit]:
    """One bundle, on a desk."""
    yield from visiting(browser, server.address)


@pytest.fixture
def visit_pair(browser: Any, pair: Server) -> Iterator[Visit]:
    """Two bundles, on a desk."""
    yield from visiting(browser, pair.address)


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """A phantom of side 128 as `png` and `dicom`, in which it looks a little different."""
    chest = draw_phantom("COVID-19", rng=np.random.default_rng(12), size=128, difficulty=0.0).pixels
    return {"png": encoded(Image.fromarray(chest)), "dicom": dicom(np.flipud(chest).copy())}
