"""Frozen features: computed once, shared by every head, seed and draw of labels."""
