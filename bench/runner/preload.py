"""Imported once by the forkserver, so that a Cell's process has its libraries at birth. Must not touch CUDA.

A fault here is left to the workers: they import the same modules and report what is wrong in their Records.
"""

import atexit
import contextlib
import gc
import os
import shutil
import warnings

if folder := os.environ.get("MEDBENCH_FORKSERVER_FOLDER"):
    # The driver removes its folder of sockets itself, unless it is killed; the forkserver ends right after it.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

with warnings.catch_warnings(), contextlib.suppress(Exception):
    warnings.simplefilter("ignore")  # libraries' own deprecations, which a user of bench can do nothing about
    import timm  # noqa: F401
    import torch  # noqa: F401

    import bench.measure.efficiency
    import bench.models.medmamba
    import bench.models.timm_models
    import bench.models.vmamba
    import bench.plan.fingerprints
    import bench.train.accuracy
    import bench.train.frozen.run  # noqa: F401

atexit.register(gc.unfreeze)  # or libraries complain at the end of a run, at length, that their objects leaked
gc.freeze()  # half a million objects of the libraries: no worker's collections, 0.4 s each, need to look at them again
