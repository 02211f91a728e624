"""A Sweep becomes Cells: accuracy, efficiency, transfer; torch-free."""
