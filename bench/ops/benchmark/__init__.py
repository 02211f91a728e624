"""``bench ops``: the backends of the scan, checked and timed."""
