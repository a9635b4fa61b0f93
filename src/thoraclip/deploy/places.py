"""Millions of paths in a few bytes each: which were met, and a number for each."""

from __future__ import annotations

import os
from array import array
from functools import lru_cache
from hashlib import blake2b

__all__ = ["Places", "path_key"]


def path_key(path: str) -> int:
    """64 bits that stand for a picture: its folder, with links and `..` resolved, and its name.

    Two links to one file are two pictures. Of a million, two share their bits with a probability of 3e-8.
    """
    folder, name = os.path.split(path)
    whole = path if "\0" in path else os.path.join(_resolved(os.path.join(os.getcwd(), folder)), name)  # noqa: PTH109, PTH118
    digest = blake2b(os.path.normcase(whole).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") or 1


@lru_cache(maxsize=256)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


class Places:
    """Keys and whole numbers, both above 0 and of 64 bits, in 16 bytes a slot: a hash table with linear probing."""

    def __init__(self) -> None:
        self._keys, self._values, self._used = array("Q", bytes(8 * 1024)), array("Q", bytes(8 * 1024)), 0

    def __len__(self) -> int:
        return self._used

    def get(self, key: int) -> int:
        """The number of a key; 0 for an unknown one."""
        return self._values[self._slot(key)]

    def set(self, key: int, value: int) -> None:
        """Give a key a number."""
        at = self._slot(key)
        self._used += not self._keys[at]
        self._keys[at], self._values[at] = key, value
        if 3 * self._used > 2 * len(self._keys):
            self._grow()

    def _slot(self, key: int) -> int:
        keys, last = self._keys, len(self._keys) - 1
        at = key & last
        while keys[at] and keys[at] != key:
            at = (at + 1) & last
        return at

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._keys, self._values = (array("Q", bytes(16 * len(keys))) for _ in range(2))
        for key, value in zip(keys, values, strict=True):
            if key:
                at = self._slot(key)
                self._keys[at], self._values[at] = key, value
