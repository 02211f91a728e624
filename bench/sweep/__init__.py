"""bench.toml, presets and flags become a validated Sweep."""
