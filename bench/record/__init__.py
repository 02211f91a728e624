"""The run directory: paths, atomic writing, schema, merging, loading as a DataFrame."""
