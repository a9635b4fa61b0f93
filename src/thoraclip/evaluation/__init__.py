"""Judgement of predictions: metrics with intervals, paired comparisons, and the report. Never sees a model."""
