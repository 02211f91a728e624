"""Imported once by the forkserver, so that a Cell's process has its libraries at birth. Must not touch CUDA."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # libraries' own deprecations, which a user of bench can do nothing about
    import timm  # noqa: F401
    import torch

    import bench.measure.efficiency
    import bench.models.medmamba
    import bench.models.timm_models
    import bench.models.vmamba
    import bench.training.accuracy  # noqa: F401

assert not torch.cuda.is_initialized()
