"""Every metric and calibration, for training and for leaderboards."""
