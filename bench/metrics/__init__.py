"""Every metric and calibration, for training and for leaderboards."""

from bench.metrics.registry import Metric, register_metric

__all__ = ["Metric", "register_metric"]
