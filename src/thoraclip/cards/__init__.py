"""Cards: what a data set is (Markdown and a Croissant record), what a trained model is, and what a bundle is.

The data card follows the questions of "Datasheets for Datasets" (Gebru et al. 2021, arXiv:1803.09010) and "Data Cards"
(Pushkarna et al. 2022, arXiv:2204.01075), as far as a manifest can answer them; the rest it names as not stated.
"""

from __future__ import annotations

from thoraclip.cards.croissant import CardSettings, croissant_record
from thoraclip.cards.data_card import data_card, write_card
from thoraclip.cards.facts import data_facts

__all__ = ["CardSettings", "croissant_record", "data_card", "data_facts", "write_card"]
