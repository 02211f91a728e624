"""The command ``bench``: one file per command; parses, prints, decides nothing."""
