"""The command `bench` itself: what it imports, what it answers."""

import subprocess
import sys

import pytest

from bench.cli import main
from bench.errors import BenchError

HEAVY = {"torch", "numpy", "rich", "pydantic", "requests", "timm"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bench.cli.main import make_parser\nmake_parser().format_help()\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_for_the_user_are_known_by_class_and_others_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OwnError(BenchError):
        """A kind that main.py has never heard of."""

    def fails(error: Exception) -> None:
        monkeypatch.setattr(main.doctor, "examine", lambda root: (_ for _ in ()).throw(error))

    fails(OwnError("x.csv: column 'y' is missing"))
    assert main.main(["doctor"]) == 2
    assert capsys.readouterr().err == "bench: x.csv: column 'y' is missing\n"
    fails(ValueError("a fault of ours"))
    with pytest.raises(ValueError, match="a fault of ours"):
        main.main(["doctor"])


def test_each_kind_of_error_is_imported_from_where_it_is_raised() -> None:
    from bench.data.files import DataError, FetchError, MissingFilesError
    from bench.record.store import StoreError
    from bench.registry import RegistryError
    from bench.report.compare.snapshot import BaselineError
    from bench.sweep.config import ConfigError

    kinds = (ConfigError, RegistryError, DataError, FetchError, MissingFilesError, StoreError, BaselineError)
    assert all(issubclass(kind, BenchError) for kind in kinds)
