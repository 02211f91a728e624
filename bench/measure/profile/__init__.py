"""Where a model's time goes: ``bench profile``."""
