"""Commands on trained networks."""
