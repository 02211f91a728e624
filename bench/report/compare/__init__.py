"""Two runs, a run and its baseline: snapshot, differences, the gate."""
