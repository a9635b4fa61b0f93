"""Panel Deployment: merge, export, predict and serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from thoraclip.api.hooks import Announce, File, hooks, read_images, to_path, writes
from thoraclip.errors import ConfigError
from thoraclip.ranges import Bits, FoldNumber, Port, SampleSize, Seed, Thumbnails, Workers, checked
from thoraclip.runs import Progress

if TYPE_CHECKING:
    from thoraclip.api.hooks import Files, Images
    from thoraclip.bundle.scoring import ScoringSummary

    Output = str | Path | IO[bytes]

__all__ = ["export", "merge", "predict", "serve"]


@checked
@writes()
def merge(
    run: File,
    *,
    out: File,
    fold: FoldNumber | None = None,
    manifest: Images | None = None,
    images: SampleSize = 64,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> dict[str, Any]:
    """Make a plain Transformers folder of a run. It is written only if it is shown to be the same classifier.

    A run of finetune or zeroshot becomes its dual encoder with the adapter merged; a probe or baseline becomes an image
    classifier, where the architecture has one that reads the same feature.

    Args:
        run: folder of a finished run that keeps its classifier.
        out: folder of the model; a merged model that is there is replaced once the new one is whole.
        fold: fold whose classifier is merged; default: the first, or the split's.
        manifest: the images that the run ran on; default: the file that it read, or one in a folder above the run's.
        images: most test images on which it is compared with the run.
        progress, announce: see `thoraclip.api`.

    Returns:
        `architecture`, the Transformers class; `fold`; and how far the folder is from the run: `images`,
        `largest_difference` and `largest_logit`, `grey_difference`, `other_answers`.

    Raises:
        InputError: no plain folder says what the run does; the message names what does.
        ParityError: the folder does not reproduce the run; nothing is written.
    """
    from thoraclip.methods.predictors import find_manifest, read_run

    finished = read_run(Path(run))

    from thoraclip.methods.merge import merge_run, require_mergeable

    require_mergeable(finished, Path(out))
    given = find_manifest(finished) if manifest is None else read_images(manifest)
    draw, log = hooks(progress, announce)
    return merge_run(finished, given, Path(out), fold=fold, images=images, progress=draw, announce=log)


@checked
@writes()
def export(
    run: File,
    *,
    out: File,
    int8: bool = False,
    fold: FoldNumber | None = None,
    manifest: Images | None = None,
    images: SampleSize = 2000,
    thumbnails: Thumbnails = 0,
    seed: Seed = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> dict[str, Any]:
    """Make a bundle that predicts without torch. It is written only if it is shown to be the same classifier.

    Args:
        run: folder of a finished run that keeps its classifier.
        out: folder of the bundle; a bundle that is there is replaced once the new one is whole.
        int8: a quarter of the size and several times the speed, if the test images show that the answers stay alike.
        fold: fold whose classifier is exported; default: the first, or the split's.
        manifest: the images that the run ran on; default: the file that it read, or one in a folder above the run's.
        images: most training, validation and test images that are used, each; int8 is compared on all test images.
        thumbnails: small training images to put inside, for the page of serve. Whoever has the bundle can see them.
        seed: seed of draws and resamples.
        progress, announce: see `thoraclip.api`.

    Returns:
        The content of `parity.json`: how far the bundle is from the original.

    Raises:
        ParityError: the exported model does not reproduce the original, or it cannot be shown; nothing is written.
    """
    from thoraclip.bundle.export import export_bundle, require_place
    from thoraclip.methods.original import load_original
    from thoraclip.methods.predictors import find_manifest, read_run

    require_place(Path(out))
    finished = read_run(Path(run))
    given = find_manifest(finished) if manifest is None else read_images(manifest)
    original = load_original(finished, given, fold=fold)
    draw, log = hooks(progress, announce)
    return export_bundle(
        original, Path(out), int8=int8, images=images, thumbnails=thumbnails, seed=seed, progress=draw, announce=log
    )


@checked
def predict(
    bundle: File,
    paths: Files | None = None,
    *,
    manifest: File | None = None,
    out: Output | None = None,
    format: str = "",
    spreadsheet_safe: bool = False,
    bits: Bits | None = None,
    threads: Workers = 0,
    engine: str = "threads",
    workers: Workers = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> ScoringSummary:
    """Score any number of chest X-rays with a bundle. An image that cannot be read is a row with the reason.

    Args:
        bundle: folder that export wrote.
        paths: images and folders of images; - reads a list from standard input, one path a line or NUL-separated.
        manifest: manifest (.parquet), or table with a column path (.csv), in place of paths.
        out: table to write; the same command goes on after a kill. Default: standard output.
        format: csv or jsonl; default: by the file's name, else csv.
        spreadsheet_safe: csv: an apostrophe before whatever a spreadsheet would run as a formula, as a name like =1+1,
            and a last column spreadsheet_safe that tells readers of it. Default: names and classes as they are.
        bits: depth of 16-bit PNG files, 8 to 16; default: what the file says, else that of the training images.
        threads: images at once; 0: one for each core; not with ray.
        engine: threads, or ray: the actors of a Ray cluster (RAY_ADDRESS, or one that is started here).
        workers: ray: actors; 0: one on each GPU, or, without a GPU, on each machine.
        progress, announce: see `thoraclip.api`.

    Returns:
        How many were scored, failed and out of distribution, the first reasons, and what was left out. Without `out`,
        the rows as well.

    Raises:
        ThoraclipError: no such image or bundle, the table cannot be written, it was begun with another bundle, or not
            one image can be read; the table is there then.
    """
    from thoraclip.bundle.opening import open_bundle
    from thoraclip.bundle.rows import Table, table_format
    from thoraclip.engine import require_engine

    require_engine(engine, workers=workers, threads=threads)
    if manifest is not None and isinstance(out, str | Path) and Path(out).resolve() == Path(manifest).resolve():
        raise ConfigError(f"{out}: is the manifest; choose another --out")
    kind = table_format(format, out)
    if spreadsheet_safe and kind != "csv":
        raise ConfigError(f"--spreadsheet-safe: is for csv, not {kind}; leave it out, or use --format csv")
    classifier = open_bundle(bundle, bits=bits)  # before the imports below, whose libraries load while it is checked

    from thoraclip.bundle.images import find_images
    from thoraclip.bundle.scoring import by_ray, require_one, score

    named = [paths] if isinstance(paths, str | Path) else paths or []
    pictures = find_images(named, manifest=to_path(manifest))
    draw, log = hooks(progress, announce)
    place = Path(out) if isinstance(out, str | Path) else out
    fingerprint = classifier.bundle.fingerprint
    options: Any = {"fingerprint": fingerprint, "spreadsheet_safe": spreadsheet_safe, "bits": bits}
    with Table(place, classifier.labels, kind, **options) as table:
        if table.resumed:
            log(f"{place}: goes on; {table.resumed} pictures were scored by an earlier run")
        far = by_ray(classifier, workers=workers, depths=pictures.depths) if engine == "ray" else None
        summary = score(classifier, pictures, table, threads=threads, engine=far, progress=draw)
    require_one(summary, place)
    return summary


@checked
def serve(
    bundle: File,
    *,
    beside: File | None = None,
    host: str = "127.0.0.1",
    port: Port = 8000,
    page: bool = True,
    token_file: File | None = None,
    allow_origin: Sequence[str] | None = None,
    allow_host: Sequence[str] | None = None,
    threads: Workers = 0,
    announce: Announce | None = None,
    **settings: Any,
) -> None:
    """Answer over HTTP with a bundle, with a page at / where images can be dropped; on this machine alone by default.

    Args:
        bundle: folder that export wrote.
        beside: another bundle, to compare. The page shows both, the API answers with it when it is named.
        host: address to listen at; 0.0.0.0 for all of this machine.
        port: port; 0 for any that is free.
        page: a page at /, in the browser.
        token_file: file with the token that clients must bring; default: $THORACLIP_TOKEN, or none.
        allow_origin: origin of a page on another host that may ask, as https://app.example.org; repeatable.
        allow_host: name by which clients ask, as of a proxy in front; beside this machine's own names and addresses;
            repeatable. With a token and none of these, any name.
        threads: images at once; 0: one for each core.
        announce: see `thoraclip.api`; gets the address, and what should be known of it.
        settings: limits: the fields of `thoraclip.server.limits.Limits`, see docs/serving.md.

    Raises:
        ThoraclipError: no such bundle, an unknown setting, no token in the file, no such host, port or origin, or the
            port is taken.
    """
    from thoraclip.config import build_config
    from thoraclip.server.access import allowed_hosts, allowed_origins
    from thoraclip.server.limits import Limits
    from thoraclip.server.process import is_loopback, listen, read_token, serve_bundles

    limits = build_config(Limits, settings, where="--set")
    token, (_, log) = read_token(to_path(token_file)), hooks(False, announce)
    origins, hosts = allowed_origins(allow_origin or ()), allowed_hosts(allow_host or ())
    with listen(host, port) as place:
        if not token and not is_loopback(place):
            log(f"no token: whoever reaches {host} can ask; --token-file FILE demands one")
        serve_bundles(
            [Path(folder) for folder in (bundle, beside) if folder is not None],
            place,
            limits=limits,
            threads=threads,
            token=token,
            origins=origins,
            hosts=hosts | {host},
            any_host=bool(token) and not hosts,
            with_page=page,
            started=lambda address: log(f"serving at {address} (Ctrl+C ends)"),
        )
