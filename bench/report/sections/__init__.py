"""One file a section of a leaderboard."""
