"""A trained network outside of its run: exported, checked, and used on images."""
