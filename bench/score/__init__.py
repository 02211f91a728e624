"""Scores of any origin: read, checked, and put into a run directory that boards, `compare` and `check` take."""
