"""Images of one manifest that show the same picture as images of another one, or as each other; `overlap.json`, and the
page with the shared images side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from thoraclip.data.batches import picture_loader
from thoraclip.data.check.inspection import duplicate_pairs, file_contents, inspect
from thoraclip.data.duplicates import clusters
from thoraclip.pages import counted, environment, picture_or_reason
from thoraclip.runs import Progress, provenance, write_json, write_text, writes, written_together
from thoraclip.spelling import LabelMap, loose
from thoraclip.tables.manifest import Manifest

__all__ = [
    "COPIES", "IDENTICAL", "NEAR", "UNREADABLE", "compare_manifests", "find_overlap", "label_relation",
    "overlap_reading", "write_overlap",
]  # fmt: skip

IDENTICAL, NEAR, COPIES, UNREADABLE = "identical", "near", "copies", "unreadable"
_SCHEMA = 1
_MOST = 100
"""Copies of one image that are listed: a thousand black images in both manifests would be a million pairs."""
_SHOWN, _SIDE = 200, 220
"""Pairs that the page shows, and the longer side of a picture in pixels; `overlap.json` lists all."""


@dataclass(frozen=True)
class _Overlap:
    """What two manifests share; rows of the second one count on after those of the first."""

    crossing: Mapping[int, list[tuple[int, float | None]]]
    """Row of the first manifest -> (row of the second, correlation of the fine detail), best first; 1.0 for identical
    files, `None` where only a chain of other copies links them."""
    groups: Sequence[Sequence[int]]  # rows of both that show one picture, of those with a copy
    contents: Sequence[str]  # SHA-256 of every row
    unreadable: Mapping[int, str]  # row -> reason


def _overlap(
    first: Manifest, second: Manifest, kept: tuple[Path, Path], kept_pairs: Path, progress: Progress | None
) -> _Overlap:
    """Measure the images of both manifests and pair them; the measurements are kept in two folders and a file."""
    seen = [inspect(m, folder, progress=progress) for m, folder in zip((first, second), kept, strict=True)]
    both = (first, seen[0]), (second, seen[1])
    pairs, contents = duplicate_pairs(kept_pairs, *both, progress=progress), file_contents(*both)
    count = len(first)
    group = clusters(len(contents), list(pairs))
    members: dict[int, list[int]] = {}
    for row in sorted({end for pair in pairs for end in (pair.first, pair.second)}):
        members.setdefault(int(group[row]), []).append(row)
    same: dict[str, list[int]] = {}
    for row in (row for rows in members.values() for row in rows):
        same.setdefault(contents[row], []).append(row)
    crossing: dict[int, dict[int, float | None]] = {}
    for rows in members.values():
        for row in (row for row in rows if row < count):
            others: dict[int, float | None] = {o: 1.0 for o in same[contents[row]] if o >= count}
            others = others or dict.fromkeys((other for other in rows if other >= count), None)
            crossing |= {row: others} if others else {}
    for pair in pairs:  # a pair of files stands for all pairs of their copies
        for one in same[contents[pair.first]] if pair.kind == NEAR else ():
            for other in same[contents[pair.second]]:
                ours, theirs = min(one, other), max(one, other)
                if ours < count <= theirs:
                    known = crossing[ours].get(theirs)
                    crossing[ours][theirs] = max(pair.correlation, known or 0.0)
    unreadable = dict(seen[0].unreadable) | {count + row: reason for row, reason in seen[1].unreadable.items()}
    ranked = {}
    for row, others in crossing.items():  # those that only a chain links are left out where there are better ones
        direct = [(other, value) for other, value in others.items() if value is not None]
        ranked[row] = sorted(direct or others.items(), key=lambda other: (-(other[1] or 0.0), other[0]))
    return _Overlap(ranked, [*members.values()], contents, unreadable)


def find_overlap(
    theirs: Manifest, ours: Manifest, own: Path, inspection: Path, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """The external images that must not be scored, in the order of their manifest.

    An image is linked to every image that it is identical to, or a near duplicate of (see `data.duplicates`). Linked
    to any image of ours, directly or through other external images, it is left out. Of external images that are linked
    with each other alone, the one with the smallest id is kept.

    The folder `own` keeps the measurements of the external images, and the pairs, `inspection` those of our images, of
    every split and fold. Returns a mapping an image: image_id, reason (`identical`, `near`, `copies` or `unreadable`),
    and `of` (id of the image that it repeats), `correlation` (of a near duplicate that was found directly), or `detail`
    (why it cannot be read). `progress` gets (done, total).
    """
    shared = _overlap(theirs, ours, (own / "inspection", inspection), own / "pairs.json", progress)
    ids, count = theirs.column("image_id"), len(theirs)
    all_ids = [*ids, *ours.column("image_id")]
    repeats: dict[int, dict[str, Any]] = {}
    for row, copies in shared.crossing.items():
        other, correlation = copies[0]
        if shared.contents[row] == shared.contents[other]:
            repeats[row] = {"reason": IDENTICAL, "of": all_ids[other]}
        elif correlation is not None:
            repeats[row] = {"reason": NEAR, "of": all_ids[other], "correlation": round(correlation, 4)}
        else:
            repeats[row] = {"reason": NEAR, "of": min(all_ids[other] for other, _ in copies), "correlation": None}
    for rows in shared.groups:
        if rows[-1] < count:  # of the external set alone
            kept = min(rows, key=lambda row: ids[row])
            repeats |= {row: {"reason": COPIES, "of": ids[kept]} for row in rows if row != kept}
    repeats |= {row: {"reason": UNREADABLE, "detail": why} for row, why in shared.unreadable.items() if row < count}
    return [{"image_id": ids[row], **repeats[row]} for row in sorted(repeats)]


def label_relation(
    labels: Sequence[Sequence[str | None]], rename: LabelMap
) -> Callable[[tuple[int, str | None], tuple[int, str | None]], str]:
    """What says of two images, (number of the manifest, its renamed label), whether their labels are the `same`, a
    `contradiction` (they differ, and one is a class of both manifests), or neither: `open`. `labels` are those of each
    manifest."""
    named = [{loose(new) for label in {*own} if (new := rename(label))} for own in labels]

    def relation(one: tuple[int, str | None], other: tuple[int, str | None]) -> str:
        if one[1] is None or other[1] is None:
            return "open"
        first, second = loose(one[1]), loose(other[1])
        shared = named[one[0]] & named[other[0]]
        return "same" if first == second else "contradiction" if {first, second} & shared else "open"

    return relation


def compare_manifests(
    a: Manifest, b: Manifest, out: Path, *, label_map: Sequence[str] = (), progress: Progress | None = None
) -> dict[str, Any]:
    """The images that two manifests share, as the content of `overlap.json`; the measurements are kept below `out`.

    The labels of a pair contradict where they differ and one of them is a class of both manifests: an image that is
    *normal* in one and *pneumonia* in the other, where both have a class *normal*. Where neither is, they may mean the
    same (*non_covid* and *pneumonia*), and the relation is open, unless `label_map` (`OLD=NEW`) tells.

    Raises:
        ConfigError: an entry of `label_map` is not OLD=NEW, or no image has the label OLD.
    """
    labels = {"a": a.column("label"), "b": b.column("label")}
    rename = LabelMap(label_map)
    rename.require_known([*labels["a"], *labels["b"]])
    of_pair = label_relation([*labels.values()], rename)

    def relation(ours: str | None, theirs: str | None) -> str:
        return of_pair((0, rename(ours)), (1, rename(theirs)))

    shared = _overlap(a, b, (out / "inspection-a", out / "inspection-b"), out / "pairs.json", progress)
    paths, count, every = [*a.column("path"), *b.column("path")], len(a), [*labels["a"], *labels["b"]]
    pairs = [
        {
            "a": paths[row],
            "b": paths[other],
            "kind": IDENTICAL if shared.contents[row] == shared.contents[other] else NEAR,
            "similarity": None if correlation is None else round(correlation, 4),
            "label_a": every[row],
            "label_b": every[other],
            "contradicts": relation(every[row], every[other]) == "contradiction",
        }
        for row, copies in sorted(shared.crossing.items())
        for other, correlation in copies[:_MOST]
    ]
    distinct = {(pair["label_a"], pair["label_b"], pair["a"]) for pair in pairs}
    images = Counter((ours, theirs) for ours, theirs, _ in distinct)
    return {
        "schema": _SCHEMA,
        "images": {"a": len(a), "b": len(b)},
        "shared": {name: len({pair[name] for pair in pairs}) for name in ("a", "b")},
        "label_map": rename.renamed,
        "labels": [
            {"a": ours, "b": theirs, "images": count, "relation": relation(ours, theirs)}
            for (ours, theirs), count in sorted(images.items(), key=lambda row: (-row[1], str(row[0])))
        ],
        "pairs": sorted(pairs, key=lambda pair: not pair["contradicts"]),
        "unreadable": [
            {"manifest": "ab"[row >= count], "path": paths[row], "reason": reason}
            for row, reason in sorted(shared.unreadable.items())
        ],
        "provenance": provenance(inputs={"a": a.fingerprint, "b": b.fingerprint}),
    }


@writes()
def write_overlap(content: Mapping[str, Any], a: Manifest, b: Manifest, out: Path) -> None:
    """Write `overlap.json`, and `overlap.html` drawn from it and from the images."""
    loads = {name: (manifest.root, picture_loader(manifest)) for name, manifest in (("a", a), ("b", b))}
    pairs = [
        (pair, [picture_or_reason(partial(load, root / pair[name]), _SIDE) for name, (root, load) in loads.items()])
        for pair in content["pairs"][:_SHOWN]
    ]
    context = {"title": "Overlap", "reading": overlap_reading(content), "overlap": content, "pairs": pairs}
    page = environment("thoraclip.data.overlap", html=True).get_template("overlap.html.j2").render(context)
    with written_together(out, "overlap"):
        write_json(out / "overlap.json", dict(content))
        write_text(out / "overlap.html", page)


def overlap_reading(content: Mapping[str, Any]) -> list[str]:
    """The result in sentences: how many images are shared, how many contradict, what the labels leave open."""
    images, shared, pairs = content["images"], content["shared"], content["pairs"]
    if not pairs:
        return [f"No image of A ({images['a']:,}) is in B ({images['b']:,})."]
    identical = len({pair["a"] for pair in pairs if pair["kind"] == "identical"})
    sentences = [
        f"{counted(shared['a'], 'image')} of A ({images['a']:,}) are in B ({images['b']:,}): "
        f"{identical:,} as identical files, {shared['a'] - identical:,} as near copies."
    ]
    contradicting = len({pair["a"] for pair in pairs if pair["contradicts"]})
    if contradicting:
        sentences.append(f"The labels in A and B contradict each other for {counted(contradicting, 'image')} of A.")
    unclear = [row for row in content["labels"] if row["relation"] == "open" and row["a"] and row["b"]]
    if unclear:
        named = ", ".join(f"'{row['a']}' and '{row['b']}'" for row in unclear[:3])
        example = f'--label-map "{unclear[0]["a"]}={unclear[0]["b"]}"'
        sentences.append(f"Whether {named} mean the same is not known; {example} says that they do.")
    return sentences
