"""Leaderboards from Records. Reads Records and nothing else; never imports torch."""
