"""Where a model's time goes: ``bench profile``."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported: its profiler complains without a GPU
