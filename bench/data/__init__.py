"""Files to uint8 arrays: download, checksums, decoded cache, resize."""
