"""Kill long work with SIGKILL at random moments, go on, and compare the bytes with an undisturbed run.

    python scripts/kill_and_resume.py --images 1500 --kills 10 --seed 0

Draws phantoms, runs each of index, the pixel cache, check, caption (a tiny BLIP with random weights) and finetune once
undisturbed, then again and again with a kill at a seeded random moment of its work; after the last kill it may end. Exits 1
where a file is missing, doubled or different. Run it from the repository: the tiny BLIP is the tests'.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CACHE = """
import sys
from pathlib import Path
from thoraclip.data.batches import pixel_cache
from thoraclip.imaging import Preprocess
from thoraclip.tables.manifest import read_manifest
pixel_cache(read_manifest(Path(sys.argv[1])), Preprocess(), Path(sys.argv[2]))
"""
_WORK = {"caption": 200, "finetune": 240}
"""Phantoms of the commands that run a model, whatever --images says."""


def files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def spawn(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def compare(what: str, command: list[str], out: Path, whole: Path, *, kills: int, rng: random.Random) -> bool:
    """Kill `command`, which writes to `out`, so many times; True where it ends with the bytes of `whole`."""
    began = time.monotonic()
    if spawn(command).wait() != 0:
        raise SystemExit(f"{what}: failed undisturbed")
    duration = time.monotonic() - began
    shutil.copytree(out, whole)
    shutil.rmtree(out)
    killed = ended = 0
    while killed < kills:
        process = spawn(command)
        try:
            process.wait(timeout=rng.uniform(0.1, 0.9) * duration)
            ended += 1
            shutil.rmtree(out)  # it ended before the kill: from the beginning again
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    code = spawn(command).wait()
    same = code == 0 and files(out) == files(whole)
    print(
        f"{what}: {duration:.1f} s undisturbed, {killed} kills, {ended} ends on the way, same bytes: {same}", flush=True
    )
    return same


def prepare_models(thoraclip: list[str], work: Path) -> dict[str, str]:
    """A tiny BLIP, and small manifests for the commands that run a model: name -> path."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.checkpoints import save_blip

    made = {"blip": str(save_blip(work / "blip"))}
    for what, images in _WORK.items():
        folder, manifest = work / f"{what}-p", str(work / "m" / f"{what}.parquet")
        subprocess.run(
            [*thoraclip, "phantom", str(folder), "--images", str(images), "--size", "128"],
            check=True,
            capture_output=True,
        )
        command = [*thoraclip, "index", str(folder), "--layout", "covid-qu-ex", "--out", manifest]
        subprocess.run(command, check=True, capture_output=True)
        made[what] = manifest
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one of them")
    arguments = parser.parse_args()
    thoraclip = [sys.executable, "-m", "thoraclip"]
    with tempfile.TemporaryDirectory() as name:
        work, rng = Path(name), random.Random(arguments.seed)
        subprocess.run(
            [*thoraclip, "phantom", str(work / "p"), "--images", str(arguments.images)], check=True, capture_output=True
        )
        index = [*thoraclip, "index", str(work / "p"), "--layout", "covid-qu-ex", "--out"]
        manifest = str(work / "m" / "m.parquet")
        subprocess.run([*index, manifest], check=True, capture_output=True)
        few = prepare_models(thoraclip, work)
        commands = {
            "index": [*index, str(work / "out" / "m.parquet")],
            "pixel cache": [sys.executable, "-c", _CACHE, manifest, str(work / "out")],
            "check": [*thoraclip, "check", manifest, "--out", str(work / "out")],
            "caption": [*thoraclip, "caption", few["caption"], "--captioner", "blip", "--model", few["blip"],
                        "--batch-size", "4", "--max-new-tokens", "20", "--out", str(work / "out" / "captions.parquet")],
            "finetune": [*thoraclip, "finetune", few["finetune"], "--out", str(work / "out"), "--set", "steps=40",
                         "--set", "batch_size=32", "--set", "chunk_size=16", "--set", "validate_every=10",
                         "--set", "checkpoint_minutes=0.02"],
        }  # fmt: skip
        commands = {what: command for what, command in commands.items() if arguments.only in ("", what)}
        good = []
        for what, command in commands.items():
            good.append(compare(what, command, work / "out", work / what, kills=arguments.kills, rng=rng))
            shutil.rmtree(work / "out")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
