"""Weighted metrics against the same metric on the repeated rows; the resamples themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics_tables import tables

from thoraclip.judge.metrics import METRICS, PER_CLASS, Scored, headline, per_class
from thoraclip.judge.resampling import replicate, resample_weights, weighted_metrics
