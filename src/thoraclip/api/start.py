"""Panel Start: demo and study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thoraclip.api.hooks import REPORT_FILES, RUN_FILES, Announce, File, hooks, writes
from thoraclip.api.results import Report
from thoraclip.errors import ConfigError
from thoraclip.ranges import PhantomCount, Seed, checked
from thoraclip.runs import Progress

__all__ = ["demo", "run_study"]

_OF_A_RUN = {"done.json": "a run"}


@checked
@writes(own=REPORT_FILES | RUN_FILES, others=_OF_A_RUN)
def demo(
    *,
    out: File = "demo-out",
    images: PhantomCount = 480,
    seed: Seed = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> Report:
    """Everything offline: draw phantoms, run the shipped tiny-clip zero-shot, with probes and tuned, judge, write the
    page.

    Args:
        out: folder to write to.
        images: phantoms to draw, 60 or more.
        seed: seed of the phantoms.
        progress, announce: see `thoraclip.api`.

    Returns:
        As `report`.
    """
    from thoraclip.data.phantom import PhantomConfig, write_phantoms
    from thoraclip.study import demo_study
    from thoraclip.study import run_study as run

    if images < 60:
        raise ConfigError(f"images = {images}: the demo needs 60 or more")
    draw, log = hooks(progress, announce)
    out = Path(out)
    log(f"drawing {images} phantoms")
    config = PhantomConfig(images=images, seed=seed, difficulty=0.0)
    summary = write_phantoms(out / "phantoms", config, progress=draw)
    log(f"{summary.images} phantoms of {summary.patients} patients")
    return Report(run(*demo_study(summary.root, out / "phantoms.parquet"), out, announce=log, progress=draw), out)


@checked
@writes(own=REPORT_FILES | RUN_FILES, others=_OF_A_RUN, unless="dry_run")
def run_study(
    source: File,
    *,
    out: File,
    dry_run: bool = False,
    progress: bool | Progress = False,
    announce: Announce | None = None,
    **settings: Any,
) -> Report | dict[str, Any]:
    """Run a list of methods on one manifest and write the report; what is done and valid is not run again.

    Args:
        source: study file (.toml), a folder of images, or a manifest (.parquet).
        out: folder to write to.
        dry_run: only plan: what would run, on how many images, and about how long it would take.
        progress, announce: see `thoraclip.api`.
        settings: settings of the study, or of the methods that know them; they win over the file.

    Returns:
        As `report`; `failed` lists the methods that failed. Of a dry run, the plan.

    Raises:
        ThoraclipError: a setting is unknown, the images cannot be read, or every method failed.
    """
    from thoraclip.study import plan_study, read_study
    from thoraclip.study import run_study as run

    study, methods = read_study(Path(source), settings)
    draw, log = hooks(progress, announce)
    if dry_run:
        return plan_study(study, methods, Path(out), announce=log)
    return Report(run(study, methods, Path(out), announce=log, progress=draw), Path(out))
