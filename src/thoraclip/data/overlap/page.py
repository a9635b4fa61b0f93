"""`overlap.json` in sentences, and the page with the shared images side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from thoraclip.data.batches import picture_loader
from thoraclip.pages import counted, environment, picture_or_reason
from thoraclip.runs import write_json, write_text, writes, written_together
from thoraclip.tables.manifest import Manifest

__all__ = ["overlap_reading", "write_overlap"]

_SHOWN, _SIDE = 200, 220
"""Pairs that the page shows, and the longer side of a picture in pixels; `overlap.json` lists all."""


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
