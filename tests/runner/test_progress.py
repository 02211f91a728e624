"""What a run shows while it goes, and the pace that corrects the estimate."""

import io

import pytest
from rich.console import Console

from bench.runner.progress import SMOOTHING_S, Observer, clock, describe


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.2, "3 s"), (89, "89 s"), (600, "10 min"), (5300, "88 min"), (11100, "3 h 05 min")]
)
def test_clock(seconds, said):
    assert clock(seconds) == said


def test_pace_learns_from_what_took_longer():
    observer = Observer(Console(file=io.StringIO()))
    observer.begin(2, 0, 1000.0)
    assert observer.remaining_s() == 1000 and observer.remaining_s(spent_s=100) == 900
    observer.start("net on data", 200.0)
    observer.finish("net on data", None, 400.0)
    assert observer.remaining_s() == pytest.approx(800 * (400 + SMOOTHING_S) / (200 + SMOOTHING_S))


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error")])
def test_a_closed_pipe_or_a_terminal_that_has_gone_ends_no_run(error, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr("rich.console.os.dup2", lambda *descriptors: None)  # rich closes our standard output too
    observer = Observer(Console(file=Gone()))
    observer.begin(1, 0, 1.0)
    observer.close()


RECORD = {"kind": "accuracy", "status": "ok", "reason": "", "metrics": {"test_auc": 0.75, "test_acc": None}}


def test_a_log_has_one_line_a_job():
    out = io.StringIO()
    observer = Observer(Console(file=out, width=40))
    observer.begin(4, 3, 60.0)
    for record in (None, RECORD):
        observer.start("a long label that must not be broken or cut", 30.0)
        observer.progress("a long label that must not be broken or cut", {"epoch": 1})
        observer.finish("a long label that must not be broken or cut", record, 12.0)
    observer.close()
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["3 cells are done already", "1 cell to run, roughly 60 s"] and len(lines) == 4
    assert lines[2].startswith("[3/4] a long label")  # one round of a cell: no cell more
    assert "[4/4] a long label that must not be broken or cut: test AUC 0.750, ACC n/a (12.0 s" in lines[3]


def test_a_log_hears_of_a_long_job_once_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("bench.runner.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    observer = Observer(Console(file=out))
    observer.begin(1, 0, 600.0)
    observer.start("net on data", 600.0)
    for second in range(0, 130, 5):
        now[0] = second
        observer.progress("net on data", {"phase": "train", "epoch": second})
    said = [line for line in out.getvalue().splitlines() if "epoch" in line]
    assert len(said) == 2 and "epoch 60/?" in said[0] and "60 s" in said[0]


def test_a_terminal_shows_phase_epoch_loss_and_pace():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    observer = Observer(console)
    observer.begin(9, 5, 400.0)
    observer.start("net on data", 100.0)
    observer.progress("net on data", {"phase": "train", "epoch": 2, "epochs": 9, "loss": 0.5, "images_per_s": 321.0})
    with console.capture() as captured:
        console.print(observer._view())
    said = captured.get()
    for part in ("net on data", "train", "epoch 2/9", "loss 0.500", "321 images/s", "5/9", "about 7 min left"):
        assert part in said
    observer.close()


def test_a_failed_record_says_why():
    assert describe({**RECORD, "status": "failed", "reason": "ValueError: no"}) == "failed: ValueError: no"


def test_a_transfer_is_told_by_its_scores():
    record = {**RECORD, "kind": "transfer", "status": "ok", "metrics": {"test_auc": 0.7, "test_acc": 0.6}}
    assert describe(record) == "test AUC 0.700, ACC 0.600"
