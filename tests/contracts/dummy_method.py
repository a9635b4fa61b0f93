"""A method that the registries' test adds: it does what `zeroshot` does."""

from thoraclip.methods.zeroshot import Config, load_classifier, run

__all__ = ["Config", "load_classifier", "run"]
