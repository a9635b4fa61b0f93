"""Load on a server: several clients against a loop in one thread over the same bundle, a crowd, 10,000 requests, a slow client.

    python -m benchmarks.serving BUNDLE [--images FOLDER] [--clients 8] [--requests 500] [--many 10000]

Prints a table. Everything runs in one call on one machine: the clients take time from the server, as they do in no other place.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import socket
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from benchmarks.inference import shared_bundles
from benchmarks.results import Result
from PIL import Image
from scripts.served import Served

from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.deploy.opening import open_bundle

KIND = {"content-type": "application/octet-stream"}


def pictures_of(folder: Path | None, count: int = 32) -> list[bytes]:
    """Files of a folder, or phantoms as PNG."""
    if folder is not None:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".png", ".jpg", ".jpeg", ".dcm"})
        return [file.read_bytes() for file in files[:count]]
    found = []
    for number in range(count):
        stream = io.BytesIO()
        pixels = draw_phantom(CLASSES[number % len(CLASSES)], rng=np.random.default_rng(number)).pixels
        Image.fromarray(pixels).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


class Client:
    """One connection that is kept."""

    def __init__(self, address: str) -> None:
        place = urlsplit(address)
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)

    def ask(self, picture: bytes) -> int:
        """The status of an answer."""
        self._connection.request("POST", "/v1/predict", picture, KIND)
        response = self._connection.getresponse()
        response.read()
        return response.status


def load(
    address: str, pictures: list[bytes], *, clients: int, requests: int
) -> tuple[float, list[float], Counter[int]]:
    """(seconds in all, seconds of each answer, statuses) of clients that ask one after another, side by side."""
    times: list[float] = []
    statuses: Counter[int] = Counter()

    def work(number: int) -> None:
        client = Client(address)
        for i in range(requests):
            begin = time.perf_counter()
            status = client.ask(pictures[(number + i) % len(pictures)])
            times.append(time.perf_counter() - begin)
            statuses[status] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin, times, statuses


def loop(bundle: Path, pictures: list[bytes], count: int) -> list[float]:
    """Seconds of each picture, one after another in one thread, without a server."""
    classifier = open_bundle(bundle, threads=1)
    times = []
    for number in range(count):
        begin = time.perf_counter()
        classifier.classify(pictures[number % len(pictures)])
        times.append(time.perf_counter() - begin)
    return times


def told(name: str, seconds: float, times: list[float], statuses: Counter[int] | None = None) -> str:
    """A row of the table."""
    p50, p95 = np.percentile(times, [50, 95])
    codes = "" if statuses is None else ", ".join(f"{n} x {status}" for status, n in sorted(statuses.items()))
    return f"| {name} | {len(times)} | {len(times) / seconds:.1f} | {1000 * p50:.1f} | {1000 * p95:.1f} | {codes} |"


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Eight clients of a server of the int8 bundle, against a loop in one thread over it."""
    bundle, pictures = shared_bundles(work, quick=quick)["int8"], pictures_of(None)
    clients, requests = 8, 2 if quick else 60
    half = loop(bundle, pictures, clients * requests // 4)
    server = Served(bundle, "--no-page")
    try:
        load(server.address, pictures, clients=1, requests=2 if quick else 20)
        _, alone, _ = load(server.address, pictures, clients=1, requests=requests)
        seconds, times, statuses = load(server.address, pictures, clients=clients, requests=requests)
    finally:
        server.stop()
    single = half + loop(bundle, pictures, clients * requests // 4)
    rate, own = len(times) / seconds, len(single) / sum(single)
    return [
        Result(f"{clients} clients", rate / own, 1.5, f"a loop in one thread without a server, {own:.1f} pictures/s", rate, "pictures/s"),
        Result("one client, median answer", statistics.median(alone) / statistics.median(single), 1.25,
               f"the same loop, {1000 * statistics.median(single):.1f} ms", 1000 * statistics.median(alone), "ms", higher_is_better=False),
        Result("requests answered", statuses[200] / len(times), 1, f"{len(times)} requests", statuses[200], "answers"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--many", type=int, default=10_000)
    args = parser.parse_args()
    pictures = pictures_of(args.images)
    count = args.clients * args.requests
    print("| | requests | per second | p50 ms | p95 ms | answers |\n|---|---|---|---|---|---|")
    half = loop(args.bundle, pictures, count // 8)
    server = Served(args.bundle, "--no-page")
    load(server.address, pictures, clients=1, requests=20)
    seconds, alone, statuses = load(server.address, pictures, clients=1, requests=count // 8)
    print(told("one client", seconds, alone, statuses), flush=True)
    seconds, times, statuses = load(server.address, pictures, clients=args.clients, requests=args.requests)
    single = half + loop(
        args.bundle, pictures, count // 8
    )  # before and after, so that a drift of the machine evens out
    print(told("loop in one thread, no server", sum(single), single))
    print(told(f"{args.clients} clients", seconds, times, statuses))
    ratio = (len(times) / seconds) / (len(single) / sum(single))
    print(f"\n{args.clients} clients against the loop: {ratio:.2f} x the throughput")

    before = statistics.median(alone)
    with slow_clients(server.address, 20):
        _, times, statuses = load(server.address, pictures, clients=1, requests=100)
    print(
        f"beside 20 clients whose upload drips: p50 {statistics.median(times) / before:.2f} x that of one client alone, {dict(statuses)}"
    )

    crowded = Served(args.bundle, "--no-page", "--set", "waiting=32")
    _, _, statuses = load(crowded.address, pictures, clients=200, requests=10)
    after = load(crowded.address, pictures, clients=1, requests=20)[2]
    print(
        f"a crowd of 200 clients, 32 may wait: {dict(sorted(statuses.items()))}; afterwards {dict(after)}; exit code {crowded.stop()}"
    )

    memory = []
    for _ in range(10):
        load(server.address, pictures, clients=args.clients, requests=max(1, args.many // 10 // args.clients))
        memory.append(server.megabytes())
    print(
        f"memory in MB after each tenth of {args.many} requests: {[round(m, 1) for m in memory]}; exit code {server.stop()}"
    )


class slow_clients:  # noqa: N801
    """Clients that send a byte now and then."""

    def __init__(self, address: str, count: int) -> None:
        place = urlsplit(address)
        self._sockets = [socket.create_connection((place.hostname, place.port)) for _ in range(count)]
        self._go = True
        self._thread = threading.Thread(target=self._drip, daemon=True)

    def __enter__(self) -> None:
        for one in self._sockets:
            one.sendall(
                b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: 100000\r\n\r\n"
            )
        self._thread.start()

    def _drip(self) -> None:
        while self._go:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.sendall(b"x")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._go = False
        self._thread.join()
        for one in self._sockets:
            one.close()


if __name__ == "__main__":
    main()
