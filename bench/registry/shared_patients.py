"""Which published datasets show the same patients."""

SHARED_PATIENTS = (frozenset({"organamnist", "organcmnist", "organsmnist"}),)  # views of the same CT volumes


def shares_patients(source: str, target: str) -> bool:
    """Say whether two datasets are known to show the same patients."""
    return any({source, target} <= group for group in SHARED_PATIENTS)
