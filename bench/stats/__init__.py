"""Statistics of Records: pure functions."""
