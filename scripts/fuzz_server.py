"""Send thousands of damaged PNG, JPEG and DICOM files to a server; each gets an answer or a reason, and the server stays as it was.

    python scripts/fuzz_server.py BUNDLE --files 10000 --seed 0 --out report.json

File i of a seed is that of `scripts/fuzz_pictures.py`. Ends with 1 when an answer is none of 200 and 4xx, has no reason, takes
longer than `--limit` seconds, when the log holds a failure, when the server does not end with 0, or when its memory has grown by
more than `--growth` MB from a tenth of the way on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.fuzz_pictures import damaged, told, valid_files
from scripts.served import Served

KINDS = {"png": "image/png", "jpeg": "image/jpeg", "dicom": "application/dicom"}


def failure_of(response: httpx.Response, seconds: float, limit: float) -> str | None:
    """What is wrong with an answer."""
    if seconds > limit:
        return f"{seconds:.1f} s"
    if response.status_code == 200:
        scores = response.json()["pictures"][0]["scores"]
        return None if abs(sum(scores.values()) - 1) < 1e-4 else f"scores {scores}"
    if not 400 <= response.status_code < 500:
        return f"status {response.status_code}"
    told = response.json()
    has_reason = response.headers["content-type"] == "application/problem+json" and told["detail"].strip()
    return None if has_reason else f"no reason: {response.text[:200]}"


def run(bundle: Path, files: int, seed: int, limit: float, growth: float) -> dict[str, Any]:
    """The report."""
    server, valid = Served(bundle, "--no-page"), valid_files()
    statuses: dict[str, Counter[int]] = {}
    failures: list[str] = []
    memory: list[float] = []
    client = httpx.Client(base_url=server.address, timeout=120)

    def send(number: int) -> None:
        name, data = damaged(valid, seed, number)
        kind = name.split()[0]
        begin = time.perf_counter()
        try:
            if number % 2:
                response = client.post("/v1/predict", content=data, headers={"content-type": KINDS[kind]})
            else:
                response = client.post("/v1/predict", files={"files": (f"../../{name}\0.png", data)})
        except httpx.HTTPError as error:
            failures.append(f"file {number} ({name}): {error!r}")
            return
        statuses.setdefault(kind, Counter())[response.status_code] += 1
        wrong = failure_of(response, time.perf_counter() - begin, limit)
        if wrong:
            failures.append(f"file {number} ({name}): {wrong}")

    step = max(1, files // 10)
    with client, ThreadPoolExecutor(4) as pool:
        for start in range(0, files, step):
            list(pool.map(send, range(start, min(files, start + step))))
            memory.append(round(server.megabytes(), 1))
    failures += [line.strip() for line in server.log if '"level": "error"' in line]
    if memory[-1] - memory[0] > growth:
        failures.append(f"memory grew from {memory[0]} to {memory[-1]} MB")
    if (code := server.stop()) != 0:
        failures.append(f"the server ended with {code}")
    return {
        "files": files, "seed": seed, "statuses": {kind: dict(sorted(n.items())) for kind, n in sorted(statuses.items())},
        "memory_mb": memory, "failures": failures,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds that one answer may take")
    parser.add_argument("--growth", type=float, default=50.0, help="MB that the server may grow by")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    begin = time.perf_counter()
    report = run(args.bundle, args.files, args.seed, args.limit, args.growth)
    return told(report, begin, args.out)


if __name__ == "__main__":
    raise SystemExit(main())
