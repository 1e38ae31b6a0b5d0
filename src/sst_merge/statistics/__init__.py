"""Calibration statistics: what a merge method may ask for, one file each."""

from sst_merge.statistics.sample_gradients import SampleGradients

STATISTICS = {"sample_gradients": SampleGradients}

__all__ = ["STATISTICS", "SampleGradients"]
