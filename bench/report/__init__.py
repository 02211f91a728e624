"""Leaderboards and statistics from Records alone; nothing here imports torch."""
