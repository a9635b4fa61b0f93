"""What a data set is, said so that a stranger can judge it: a data card in Markdown and a Croissant record.

The card follows the questions of "Datasheets for Datasets" (Gebru et al. 2021, arXiv:1803.09010) and "Data Cards"
(Pushkarna et al. 2022, arXiv:2204.01075), as far as a manifest can answer them; the rest it names as not stated.
"""

from __future__ import annotations

from thoraclip.data.card.croissant import croissant_record
from thoraclip.data.card.facts import data_facts
from thoraclip.data.card.markdown import data_card
from thoraclip.data.card.settings import CardSettings
from thoraclip.data.card.writing import write_card

__all__ = ["CardSettings", "croissant_record", "data_card", "data_facts", "write_card"]
