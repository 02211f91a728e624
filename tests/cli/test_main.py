"""The command `bench` itself: what it imports, what it answers."""

import errno
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from bench.cli import flags, main
from bench.errors import BenchError, say

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


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["lst"], "bench: error: argument COMMAND: invalid choice 'lst' (did you mean list?)"),
        (["list", "modles"], "argument what: invalid choice 'modles' (did you mean models?) (choose from models, data"),
        (
            ["plan", "--modles", "resnet"],
            "bench plan: error: unrecognized arguments: --modles (did you mean --models?)",
        ),
        (
            ["plan", "--sizes", "28", "64"],
            "unrecognized arguments: 64; lists are separated by commas, as 64,224; see `b",
        ),
        (
            ["run", "folder:scans"],
            "unrecognized arguments: folder:scans; data are named by --datasets folder:scans",
        ),
        (["profile", "resnet18", "--device", "gpu"], "argument --device: gpu: write cpu, cuda or cuda:N"),
        (["explain", "run", "--device", "gpu"], "--device: gpu: write cpu, cuda or cuda:N"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_closest(
    typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(typed)
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["plan", "--device", "gpu"], "bench: --device: run.device = 'gpu': write auto, cpu, cuda or cuda:N\n"),
        (
            ["plan", "--models", "convnext_tiny"],
            "a model of timm is written timm:convnext_tiny",
        ),
        (["plan", "--models", "resnt18"], "unknown model 'resnt18' (did you mean 'resnet18'?)"),
        (
            ["inspect", "scans"],
            "unknown dataset 'scans'; `bench list datasets` shows all; images of your own are named by",
        ),
        (["plan", "--epochs", "x"], "bench: --epochs: sweep.epochs = 'x': should be a whole number\n"),
        (["plan", "--set", "swep.seeds=3"], "unknown key 'swep.seeds' (did you mean 'sweep.seeds'?)\n"),
        (["inspect", "cxr/list.csv"], "dataset 'cxr/list.csv': there is no such file or folder"),
        (["plan", "--datasets", "cxr/list.csv"], "dataset 'cxr/list.csv': there is no such file or folder"),
        (
            ["plan", "--datasets", "cxr/labels.xlsx"],
            "labels.xlsx is a spreadsheet, not a text table; save it as one in Ex",
        ),
        (
            ["inspect", "cxr/labels.csv"],
            "'csv:cxr/labels.csv': labels.csv: set label=COLUMN in brackets; it has file, age",
        ),
        (["inspect", "cxr"], "dataset 'folder:cxr': "),
        (["list", "models", "phantom*"], "no model matches 'phantom*'; `bench list models` shows all"),
    ],
)
def test_wrong_names_are_answered_with_what_to_write(
    typed: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cxr").mkdir()
    (tmp_path / "cxr" / "labels.csv").write_text("file,age\na.png,3\n")
    with zipfile.ZipFile(tmp_path / "cxr" / "labels.xlsx", "w") as book:  # what such a file is
        book.writestr("xl/workbook.xml", "<workbook/>")
    assert main.main(typed) == 2
    assert said in capsys.readouterr().err


def test_every_flag_of_a_sweep_has_its_group() -> None:
    grouped = [flag for group in flags.GROUPS.values() for flag in group]
    assert sorted(grouped) == sorted(flags.SWEEP_FLAGS)


def test_bench_alone_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    shown = capsys.readouterr()
    assert not shown.out and "recommend a network" in shown.err and "examples:" in shown.err


def test_lines_in_a_terminal_break_between_words_and_commands_never() -> None:
    text = (
        "data: breastmnist: 1 image of train is in test too, with equal pixels\n  bench run --skip-missing --out runs/a"
    )
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=40, force_terminal=terminal, no_color=True)
        say(console, text)
        shown[terminal] = console.file.getvalue().splitlines()
    assert [line.rstrip() for line in shown[True]] == [
        "data: breastmnist: 1 image of train is",
        "in test too, with equal pixels",
        text.split("\n")[1],
    ]
    assert shown[False] == text.split("\n")


def test_a_folder_that_cannot_be_written_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(error: OSError) -> None:
        monkeypatch.setattr(main.doctor, "examine", lambda root: (_ for _ in ()).throw(error))

    fails(OSError(errno.EROFS, "Read-only file system", "look"))
    assert main.main(["doctor"]) == 2
    assert (
        "bench: cannot write look: Read-only file system; free space, or choose another place"
        in capsys.readouterr().err
    )
    fails(OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(OSError, match="Bad file"):
        main.main(["doctor"])


def test_timm_is_not_imported_to_word_an_error() -> None:
    code = (
        "import sys\nfrom bench.cli.main import main\nmain(['plan', '--models', 'convnext_tiny'])\n"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "timm:convnext_tiny" in done.stderr


def test_list_takes_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", "models", "*mamba*"]) == 0
    said = capsys.readouterr().out
    assert "medmamba_tiny" in said and "vmamba_tiny" in said and "resnet18" not in said and "words" not in said
    assert main.main(["list", "datasets", "organ*", "--json"]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} == {
        "organamnist", "organcmnist", "organsmnist",
    }  # fmt: skip


def test_the_shell_completes_commands_flags_and_the_last_name_of_a_list() -> None:
    for line, wanted in (
        ("bench leaderb", ["leaderboard"]),
        ("bench run --models resnet18,medmamba_b", ["resnet18,medmamba_base", "resnet18,medmamba_base_d16"]),
        ("bench profile x --precision bf", ["bf16"]),
    ):
        shell = {
            "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "COMP_LINE": line, "COMP_POINT": str(len(line)),
        }  # fmt: skip
        with tempfile.NamedTemporaryFile("r+") as answer:
            shell["_ARGCOMPLETE_STDOUT_FILENAME"] = answer.name
            subprocess.run([sys.executable, "-m", "bench"], env={**os.environ, **shell}, check=True)
            assert answer.read().split() == wanted
