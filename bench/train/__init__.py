"""Recipes, the data pipeline, augmentation and the training loop."""
