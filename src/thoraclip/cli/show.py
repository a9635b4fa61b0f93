"""What the commands print of their results, in the order of the panels of `thoraclip --help`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from thoraclip.api.results import NOT_FOR_DIAGNOSIS
from thoraclip.cli.console import announce, print_table, say
from thoraclip.methods import METHODS

if TYPE_CHECKING:
    from thoraclip.api.results import Report
    from thoraclip.bundle.scoring import ScoringSummary
    from thoraclip.data.index import IndexResult
    from thoraclip.data.phantom import PhantomSummary
    from thoraclip.tables.captions import Captions
    from thoraclip.tables.embeddings import Embeddings
    from thoraclip.tables.manifest import Manifest


def study(content: Any, given: Mapping[str, Any]) -> None:
    """The main table and where the page is, or the plan; exit code 1 where a method failed."""
    if given["dry_run"]:
        _show_plan(content)
        return
    report(content, given)
    if content["failed"] or content.get("learning_curve", {}).get("failed"):
        raise typer.Exit(1)


def _show_plan(plan: dict[str, Any]) -> None:
    """The plan as a table of runs and stages."""
    rows, totals = [_plan_row(row) for row in (*plan["runs"], *plan["stages"])], plan["totals"]
    title = f"{plan['source']}: {plan['images']:,} images"
    print_table(["", "kind", "seed", "encoded", "trained", "time", "state"], rows, title=title, numbers=False)
    about, low, high = (_duration(totals["seconds"] * by) for by in (1, 1 / totals["factor"], totals["factor"]))
    say(
        f"{'In all' if totals['complete'] else 'What can be estimated'}: about {about}, between {low} and {high} if "
        f"nothing else runs and no training stops early; {totals['images_encoded']:,} images forward, "
        f"{totals['images_trained']:,} forward and backward."
    )
    for note in plan["notes"]:
        say(f"Note: {note}")


def _plan_row(row: Mapping[str, Any]) -> list[str]:
    state = f"{' and '.join(row['cached'])} cached" if row["cached"] else "to do"
    state += f", {row['token_bytes'] / 1e9:.1f} GB of tokens on disk" if row["token_bytes"] else ""
    state = f"cannot run: {row['error']}" if row["error"] else "done" if row["done"] else state
    counts = [f"{row[name]:,}" if row[name] else "" for name in ("images_encoded", "images_trained")]
    duration = "" if row["done"] else "?" if row["seconds"] is None else _duration(row["seconds"])
    return [row["name"], row["kind"], "" if row["seed"] is None else str(row["seed"]), *counts, duration, state]


def _duration(seconds: float) -> str:
    """12 s, 3 min, 2.1 h, 3.5 days."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def index(result: IndexResult, given: Mapping[str, Any]) -> None:
    """Counts, and the first of everything that was set aside."""
    print_counts(*result.manifest.counts())
    _list("pictures set aside", [f"{path}: {reason}" for path, reason in result.set_aside])
    _list_folders("unknown folders left out", result.unknown_folders)
    _list("files that are not pictures", result.other_files)
    _list_folders("hidden files and files of the system left out", result.system_files)
    _list_folders("folders with files that the table does not name", result.not_in_table)
    _list("files that repeat one of the manifest", [f"{path} = {kept}" for path, kept in result.repeated_files])
    _list("groups of identical pictures", [" = ".join(group["image_ids"]) for group in result.repeats])
    _list("notes", result.notes)
    torn = [f"{name} ({', '.join(parts)})" for name, parts in result.manifest.patients_in_two("split").items()]
    _list("patients in two parts of the split; split again before training", torn)
    place = f"{given['out']}; everything else is listed in {given['out'].with_suffix('.index.json')}"
    announce(f"{len(result.manifest)} images (files read: {result.read}) -> {place}")


def check(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Counts, what tells the classes apart, leaks and warnings; exit code 1 for a leak with --strict."""
    counts, differences = content["counts"], content["differences"][:8]
    print_counts(counts["parts"], counts["classes"])
    if differences and differences[0]["alone"] is None:
        say(f"what tells the classes apart is not measured: {differences[0]['reason']}")
    elif differences:
        rows = [
            [row["name"].replace("_", " "), _percent(row["alone"], 0, ""), row["description"]] for row in differences
        ]
        print_table(["names the class", "%", "what it is"], rows, numbers=False)
    for what in ("leaks", "warnings"):
        for sentence in content[what]:
            say(f"{what.removesuffix('s')}: {sentence}")
    if not content["leaks"]:
        say("there is no split yet, so nothing can leak" if counts["parts"] == ["no split"] else "no leak found")
    if given["out"]:
        announce(f"page: {given['out'] / 'check.html'}")
    if given["strict"] and content["leaks"]:
        raise typer.Exit(1)


def select(manifest: Manifest, given: Mapping[str, Any]) -> None:
    """Images of each class in each part, and how many were left out."""
    print_counts(*manifest.counts())
    announce(f"{len(manifest)} images -> {given['out']}")
    done = manifest.selections[-1]
    unknown = f", {done['unknown']:,} of them since a value is unknown" if done["unknown"] else ""
    announce(f"{done['images'] - done['kept']:,} of {done['images']:,} images left out{unknown}")


def card(page: Path, given: Mapping[str, Any]) -> None:
    """Where the card and the record are."""
    announce(f"{page}, {given['out'] / 'croissant.json'}")


def phantom(summary: PhantomSummary, given: Mapping[str, Any]) -> None:
    """How many were drawn, and where."""
    announce(f"{summary.images} phantoms of {summary.patients} patients -> {summary.root}")


def print_counts(parts: list[str], classes: dict[str, list[int]]) -> None:
    print_table(["class", *parts], [[label, *map(str, row)] for label, row in classes.items()])


def _list_folders(what: str, folders: Sequence[tuple[str, int]]) -> None:
    total = sum(count for _, count in folders)
    _list(f"{what} (files in all: {total})", [f"{path} (files: {count})" for path, count in folders])


def _list(what: str, lines: list[str]) -> None:
    if lines:
        _list_first(f"{what}: {len(lines)}", lines, len(lines))


def _list_first(heading: str, lines: Sequence[str], count: int) -> None:
    """The first ten of `count` lines."""
    for line in (heading, *(f"  {line}" for line in lines[:10])):
        announce(line)
    if count > 10:
        announce(f"  ... and {count - 10} more")


def captions(captions: Captions, given: Mapping[str, Any]) -> None:
    """How many there are, and three examples."""
    different, told = len(set(captions.text)), f"the class told in {sum(captions.with_label)}"
    announce(f"{len(captions)} captions, {different} different, {told} -> {given['out']}; for example")
    for row in range(0, len(captions), max(1, -(-len(captions) // 3))):
        announce(f"  {captions.image_id[row]}: {captions.text[row]}")


def features(features: Embeddings | None, given: Mapping[str, Any]) -> None:
    """What was written; nothing in all but the first of several processes."""
    if features is not None:
        announce(
            f"{len(features)} images, pooled {features.pooled.shape[1]} + projected {features.projected.shape[1]} "
            f"numbers each, geometry {given['geometry']}, {features.encoder['precision']} -> {given['out']}"
        )


def predictions(result: Any, given: Mapping[str, Any]) -> None:
    """Where the predictions are; nothing in all but the first of several processes."""
    if result is not None:
        place = f"{given['out'] / 'predictions.parquet'}; judge them: thoraclip report {given['out']} --out DIR"
        announce(f"{len(result.predictions)} predictions -> {place}")


def list_settings(kind: str) -> None:
    """The settings of a method, with defaults and help."""
    from thoraclip.config import field_help, field_kinds, toml_value
    from thoraclip.ranges import range_text

    config = METHODS[kind].config_type
    texts, kinds = field_help(config), field_kinds(config)  # type: ignore[arg-type]
    rows = [[n, toml_value(getattr(config, n)), range_text(kind), texts.get(n, "")] for n, kind in kinds.items()]
    print_table(["setting", "default", "range", "what it does"], rows, title=f"Settings of {kind}", numbers=False)


def audit(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The tests as a table on standard output, and the reading."""
    from thoraclip.evaluation.audit_reading import label

    rows = []
    for test in content["tests"]:
        effect, low, high = (f"{100 * test[name]:+z.1f}" for name in ("effect", "low", "high"))
        p = "" if test["p_holm"] is None else f"{test['p_holm']:.3f}"
        rows.append([test["name"].replace("-", " "), test["asks"], effect, f"[{low}, {high}]", p, label(test)])
    title = "Effect in points of balanced accuracy, with 95 % intervals; p after Holm's correction"
    print_table(["test", "asks", "effect", "interval", "p", "verdict"], rows, title=title)
    for sentence in (*content["reading"], f"{NOT_FOR_DIAGNOSIS} Page: {given['out'] / 'audit.html'}"):
        say(sentence)


def explanation(explained: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The map's numbers on standard output, and where the sheet is."""
    shares = explained["evidence_in_lungs"], explained["lung_area"]
    inside, area = ("-" if value is None else f"{100 * value:.0f} %" for value in shares)
    rows = [
        ["class", f"{explained['class']}, probability {explained['probability']:.3f}"],
        ["predicted", f"{explained['predicted']}, probability {explained['scores'][explained['predicted']]:.3f}"],
        ["method", explained["method"]],
        ["evidence in the lungs", inside],
        ["lungs' share of the area", f"{area}, outline: {explained['lungs_from']}"],
        ["classifier", explained["note"]],
    ]
    print_table(["map", ""], rows, numbers=False)
    say(f"A map is no proof. {NOT_FOR_DIAGNOSIS} Sheet: {given['out']}")


def report(content: Report, given: Mapping[str, Any]) -> None:
    """The main table on standard output, and where the page is."""
    from thoraclip.evaluation.findings import told

    header, *rows = content.rows()
    print_table(header, rows, title=f"{content['title']}: %, with 95 % intervals")
    for sentence in (*told(content), f"{NOT_FOR_DIAGNOSIS} Page: {given['out'] / 'report.html'}"):
        say(sentence)


def merged(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """How far a plain Transformers folder is from its run, on standard output."""
    images = f"{content['images']} test images"
    rows = [
        ["opens as", content["architecture"] + ("" if content["fold"] is None else f", of fold {content['fold']}")],
        ["logits on equal pixels", f"largest difference {content['largest_difference']:.1e} on {images}"],
        ["pixels of its processor", f"{content['grey_difference']:.2f} grey levels from the run's, at most"],
        ["other answers for it", f"{content['other_answers']} of {images}"],
    ]
    print_table(["proof", ""], rows, numbers=False)
    say(f"{NOT_FOR_DIAGNOSIS} Model: {given['out']}, card: {given['out'] / 'README.md'}")


def parity(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """How far the bundle is from the original, on standard output."""
    fp32, int8, test = content["fp32"], content["int8"], content["test"]
    difference = f"{fp32['largest_difference']:.1e} on {fp32['images']} test images"
    rows = [
        ["fp32 against the original", f"largest difference {difference}"],
        ["accuracy of the bundle", f"{_percent(test['accuracy'])} on {test['images']} test images"],
        ["sets hold the true class", f"{_percent(test['coverage'])}, {test['mean_set_size']:.2f} classes on average"],
        ["test images flagged", _percent(test["flagged"])],
    ]
    if int8:
        change = int8["accuracy"]
        between = f"[{100 * change['low']:+z.2f}, {100 * change['high']:+z.2f}]"
        rows[1:1] = [
            ["int8: other answers", f"{int8['other_answers']} of {int8['images']} test images"],
            ["int8: change of accuracy", f"{100 * change['change']:+z.2f} {between} points"],
            ["int8: size", f"{100 * int8['size']:.0f} % of fp32"],
        ]
    print_table(["proof", ""], rows, numbers=False)
    say(f"{NOT_FOR_DIAGNOSIS} Bundle: {given['out']}, card: {given['out'] / 'README.md'}")


def _percent(share: Mapping[str, float] | None, digits: int = 1, unit: str = " %") -> str:
    if share is None:
        return "-"
    value, low, high = (f"{100 * share[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def predict(summary: ScoringSummary, given: Mapping[str, Any]) -> None:
    """How many were scored and what could not be, on standard error."""
    out, counts = given["out"], [f"{summary.images} images", f"{summary.failed} cannot be read"]
    if summary.flagged is not None:
        counts.append(f"{summary.flagged} unlike the training images")
    if summary.repeated:
        counts.append(f"{summary.repeated} named again and passed over")
    announce(", ".join(counts) + (f" -> {out}" if out else ""))
    if summary.failed:
        heading = f"cannot be read: {summary.failed}, each with its reason in the column error"
        _list_first(heading, [f"{path}: {reason}" for path, reason in summary.first_failed], summary.failed)
    if summary.first_remark:
        announce(f"remarks on {summary.remarked} images, first {': '.join(summary.first_remark)}")
    for what in summary.left_out_told:
        announce(f"left out: {what}")
    if summary.not_utf8:
        announce(f"names that are not UTF-8: {summary.not_utf8}; a CSV holds their bytes (errors='surrogateescape')")
    announce(NOT_FOR_DIAGNOSIS)
