"""The command ``bench``: one file a command; parses, prints, decides nothing."""
