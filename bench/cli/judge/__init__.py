"""Commands that judge scores and claims of others; light."""
