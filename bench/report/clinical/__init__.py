"""What a reader in a clinic asks of a model: operating points, subgroups, shortcuts, the size of the test set."""
