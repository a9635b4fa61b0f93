"""ThoraCLIP: chest X-ray classifiers, compared so that the comparison can be believed.

One function per command (see `thoraclip.api`), and the tables and parts that they work with. `__init__.pyi` lists the
names; each is loaded when it is first used. Importing the package imports neither torch nor any other heavy library.
"""

from importlib import import_module
from typing import Any

import lazy_loader

_load, _, _NAMES = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    if name in _NAMES:
        return _load(name)
    if name in _methods():
        return getattr(import_module("thoraclip.api.methods"), name)
    raise AttributeError(f"module 'thoraclip' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*_NAMES, *_methods()})


def _methods() -> Any:
    return import_module("thoraclip.methods").METHODS
