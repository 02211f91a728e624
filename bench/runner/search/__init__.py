"""A search within a budget: which networks are worth a full training, decided on validation alone."""
