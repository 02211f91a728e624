"""What a run prints at its end: never more than a screen, whatever happened, and only what the Records say."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.cli.main import main
from bench.record import store
from bench.report.build import read_report
from bench.report.write.terminal import print_screen, screen, shortened
from tests.report.conftest import Run, binary_scores

RESULTS = Path(__file__).resolve().parents[2] / "results"
COMMAND = "bench run --models resnet18,medmamba_tiny --datasets phantom_global --out somewhere"


def lines_of(out: Path, width: int = 80, keys: Any = ()) -> list[str]:
    report, problems = read_report(out)
    assert not problems
    return [line.text for line in screen(report, out, width, keys)]


def text_of(out: Path, **more: Any) -> str:
    return " ".join(" ".join(lines_of(out, **more)).split())


def stored(out: Path) -> list[dict[str, Any]]:
    """The Records as JSON on disk, without the store."""
    return [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]


def with_plan(out: Path, records: list[Any], more: int = 0, command: str = COMMAND, **info: Any) -> Path:
    planned = [r["key"] for r in records] + [f"{i:020x}" for i in range(more)]
    store.write_json(out / "run.json", {"schema": 1, "command": command, "planned": {command: planned}, **info})
    return out


def models(run: Run, count: int, seeds: int = 1) -> Run:
    for i in range(count):
        model = f"timm:convnextv2_architecture_{i}_patch16_224"
        for seed in range(seeds):
            scores, labels = binary_scores(120, 2.5 - 0.05 * i, 100 * i + seed)
            run.accuracy(model, "breastmnist", seed=seed, scores=scores, labels=labels)
        run.efficiency(model, 64, speed=1000.0 + i, memory=100.0 + i, params=int(1e6 * (i + 1)), macs_g=0.1 * (i + 1))
    return run


def one_model(run: Run) -> None:
    models(run, 1)


def forty(run: Run) -> None:
    models(run, 40)


def three_seeds(run: Run) -> None:
    models(run, 5, seeds=3)


def failures(run: Run) -> None:
    models(run, 12)
    for i, status in enumerate(("failed", "oom", "timeout", "unsupported", "diverged")):
        run.accuracy(f"broken_{i}", "breastmnist", status=status, reason="RuntimeError: \x1b[31mlong\n" + "why " * 90)


def only_failures(run: Run) -> None:
    run.accuracy("broken", "breastmnist", status="failed", reason="no")


def efficiency_only(run: Run) -> None:
    for i in range(30):
        for resolution in (64, 224):
            run.efficiency(f"timm:vit_base_patch16_{i}", resolution, speed=10.0 + i, params=5_000_000, noise_rel=0.02,
                           memory=1.0, latency_ms_p50=2.0, device_images_per_s_p50=20.0)  # fmt: skip
    run.efficiency("too_large", 224, status="oom", reason="5 GiB did not fit")


def unusable(run: Run) -> None:
    models(run, 20)
    for record in run.records:
        if record["kind"] == "efficiency":
            record["metrics"]["noise_rel"] = 2.57


def many_datasets(run: Run) -> None:
    for dataset in range(9):
        for model in range(12):
            scores, labels = binary_scores(60, 1 - 0.1 * model, dataset * 20 + model)
            run.accuracy(f"a_model_of_a_long_name[variant=number_{model},depth=2]", f"a_dataset_{dataset}",
                         scores=scores, labels=labels)  # fmt: skip


def without_scores(run: Run) -> None:
    for i in range(3):
        run.accuracy(f"m{i}", "Röntgen_日本", 0.7 + i / 10, acc=0.6)


def nothing(run: Run) -> None:
    pass


SITUATIONS = (
    one_model, forty, three_seeds, failures, only_failures, efficiency_only, unusable, many_datasets, without_scores,
    nothing,
)  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_screen_holds_it(run: Run, tmp_path: Path, situation: Any, interrupted: bool):
    situation(run)
    command = f"{COMMAND} --set {'efficiency.rounds=3 ' * (30 if interrupted else 2)}".strip()
    skipped = [f"dataset_{i} at 28 pixels: /data/d{i}.npz is missing" for i in range(12)]
    out = with_plan(run.write(tmp_path / "a run" / ("x" * 60)), run.records, 23 * interrupted, command, skipped=skipped)
    (out / "cells").mkdir(exist_ok=True)
    for width in (60, 80, 140):
        lines = lines_of(out, width)
        end = next(i for i, line in enumerate(lines) if line.startswith("Report: "))
        assert max(map(cell_len, lines[:end])) <= width  # a path is whole: the terminal breaks it
        assert sum(max(1, -(-cell_len(line) // width)) for line in lines) <= 25
        assert all(line.isprintable() for line in lines)
        assert lines[0].startswith(f"INCOMPLETE: {len(run.records)} of {len(run.records) + 23} c") == interrupted
        assert {f"Report: {out / 'report.html'}", f"Tables: {out / 'LEADERBOARD.md'}"} <= set(lines)
        assert sum(line.startswith("Next: ") for line in lines) == 1


def test_the_table_is_what_the_records_say(run: Run, tmp_path: Path):
    out = models(run, 3, seeds=3).write(tmp_path)
    lines = lines_of(out)
    heading = next(i for i, line in enumerate(lines) if line.startswith("model"))
    assert " ".join(lines[heading].split()) == "model AUC and 95 % ACC params GMACs images/s memory worse"
    shown = [line.split() for line in lines[heading + 1 : heading + 4]]
    aucs: dict[str, list[float]] = {}
    for record in stored(out):
        if record["kind"] == "accuracy":
            aucs.setdefault(record["spec"]["model"], []).append(record["metrics"]["test_auc"])
    by_auc = sorted(aucs, key=lambda model: -np.mean(aucs[model]))
    assert [row[1] for row in shown] == [f"{np.mean(aucs[model]):.3f}" for model in by_auc]
    for model, row in zip(by_auc, shown, strict=True):
        start, end = row[0].split("…")
        assert model.startswith(f"timm:{start}") and model.endswith(f"{end}_patch16_224")
        low, high = map(float, row[2].split("–"))
        assert low < np.mean(aucs[model]) < high
        (cost,) = [r["metrics"] for r in stored(out) if r["kind"] == "efficiency" and r["spec"]["model"] == model]
        assert float(row[4]) == pytest.approx(cost["params"] / 1e6, rel=5e-3)
        assert float(row[6].replace(",", "")) == pytest.approx(cost["throughput_images_per_s_p50"], rel=5e-3)
        assert float(row[7]) == pytest.approx(cost["peak_memory_mib"], rel=5e-3)
    assert "3 seeds" in text_of(out) and "single seed" not in text_of(out)


def test_forty_models_show_the_best_and_count_the_rest(run: Run, tmp_path: Path):
    out = models(run, 40).write(tmp_path)
    lines = lines_of(out)
    heading = next(i for i, line in enumerate(lines) if line.startswith("model"))
    more = next(i for i, line in enumerate(lines) if "more in LEADERBOARD.md" in line)
    shown = more - heading - 1
    assert shown >= 4 and lines[more] == f"… and {40 - shown} more in LEADERBOARD.md"
    best = sorted((r["metrics"]["test_auc"] for r in stored(out) if r["kind"] == "accuracy"), reverse=True)
    assert [line.split()[1] for line in lines[heading + 1 : more]] == [f"{auc:.3f}" for auc in best[:shown]]


def test_what_is_not_significant_and_why(run: Run, tmp_path: Path):
    for model, distance in (("strong", 3.0), ("weak", 0.2), ("weaker", 0.1)):
        scores, labels = binary_scores(400, distance, len(model))
        run.accuracy(model, "breastmnist", scores=scores, labels=labels)
    text = text_of(run.write(tmp_path))
    assert text.startswith("Recommended: strong. AUC on breastmnist 0.98")
    assert "; significantly better than all others. Against it: single seed, so training again may change" in text


def test_an_insignificant_leader_is_not_called_better(run: Run, tmp_path: Path):
    for seed, model in enumerate(("a", "b", "c")):
        scores, labels = binary_scores(40, 0.0, seed)
        run.accuracy(model, "breastmnist", scores=scores, labels=labels)
    text = text_of(run.write(tmp_path))
    assert "; best, no other is within 0.02 of it. Runner-up: b." in text
    assert "Against it: it is not significantly better than chance (AUC 0.5); single seed" in text
    assert "(now 1 seed, 40 images) would show its difference from b, " in text_of(tmp_path, width=140)


def test_what_the_means_are_over_is_said(run: Run, tmp_path: Path):
    for dataset in ("one", "two", "three"):
        for model in ("a", "b")[: 1 if dataset == "three" else 2]:
            for seed in range(3 if model == "a" else 1):
                run.accuracy(model, dataset, 0.8, acc=0.5, seed=seed)
    text = text_of(run.write(tmp_path))
    assert "Mean over 2 of 3 datasets (one, two), which the ranked models share, 28→64 px (nearest)" in text
    assert "1 to 3 seeds" in text


def test_efficiency_alone_shows_costs_the_fastest_first(run: Run, tmp_path: Path):
    efficiency_only(run)
    out = run.write(tmp_path)
    lines = lines_of(out)
    assert lines[0].startswith("Fastest at 224 px: timm:vit_base_patch16_29 with 39.0 images/s;")
    heading = next(line for line in lines if line.startswith("model"))
    assert "AUC" not in heading and "images/s" in heading and len(re.split(r"\s\s+", heading)) <= 8
    speeds = [line.split()[2] for line in lines[lines.index(heading) + 1 :] if line.startswith("timm:vit_base")]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] == "39.0"
    assert "No result: 1 of 61 cells (1 oom). too_large, infer at 224 px: 5 GiB did not fit" in text_of(out)


def test_unusable_speeds_are_called_so_with_what_to_do(run: Run, tmp_path: Path):
    models(run, 4)
    next(r for r in run.records if r["kind"] == "efficiency")["metrics"]["noise_rel"] = 2.57
    out = with_plan(run.write(tmp_path), run.records)
    lines, text = lines_of(out), text_of(out)
    assert sum("unusable" in line.split() for line in lines) == 1
    assert "Unusable: images/s in 1 of 4 rows. Two runs would differ by up to 504 % (limit 50 %)" in text
    assert "1,000" not in text  # the speed of the disturbed row
    assert lines[-1].startswith("Next: bench run --models resnet18") and lines[-1].endswith(" --retry noisy")


def test_the_next_command_can_be_copied(run: Run, tmp_path: Path):
    models(run, 2)
    run.accuracy("broken", "breastmnist", status="failed", reason="no")
    command = f"bench run --models 'resnet18,medmamba_tiny[branch=conv]' --datasets {'breastmnist,' * 5} --out 'a b'"
    lines = lines_of(with_plan(run.write(tmp_path), run.records, command=command))
    (copied,) = [line.removeprefix("Next: ") for line in lines if line.startswith("Next: ")]
    said = subprocess.run(
        ["bash", "-c", f"bench() {{ printf '%s\\n' \"$@\"; }}\n{copied}"], capture_output=True, text=True
    )
    assert said.stdout.splitlines() == [*shlex.split(command)[1:], "--retry", "failed,timeout"]


def test_a_whole_run_names_the_command_that_shows_everything(run: Run, tmp_path: Path):
    out = with_plan(models(run, 2).write(tmp_path), run.records)
    lines = lines_of(out)
    (start,) = [i for i, line in enumerate(lines) if line.startswith("Next: ")]
    assert lines[start] == f"Next: bench leaderboard {out} --print"


def test_of_several_protocols_the_one_that_ran_is_shown(run: Run, tmp_path: Path):
    for resolution in (64, 128):
        for i, model in enumerate(("a", "b", "c")[: 3 if resolution == 64 else 2]):
            run.accuracy(model, "breastmnist", 0.5 + resolution / 1000 + i / 100, acc=0.5, resolution=resolution)
    run.efficiency("a", 64, speed=3.0)
    out = run.write(tmp_path)
    assert "28→64 px" in text_of(out) and "(1 more protocol in LEADERBOARD.md)" in text_of(out)
    small = [r["key"] for r in run.records if r["spec"]["resolution"] == 128]
    assert "28→128 px" in text_of(out, keys=small) and "0.638" in text_of(out, keys=small)
    assert text_of(out, keys=[run.records[-1]["key"]]).startswith("Speed at 64 px: a with 3.00 images/s.")


def test_the_interrupted_run_says_so_on_screen_board_and_page(run: Run, tmp_path: Path):
    models(run, 6)
    out = with_plan(run.write(tmp_path), run.records, more=23)
    report, _ = read_report(out)
    report.write(out)
    assert lines_of(out)[0] == "INCOMPLETE: 12 of 35 cells."
    board = (out / "LEADERBOARD.md").read_text()
    assert board.startswith(
        f"# Leaderboard\n\nINCOMPLETE: 12 of 35 cells. This command goes on where the run stopped:\n\n```\n{COMMAND}\n"
    )
    page = (out / "report.html").read_text()
    assert page.index("INCOMPLETE: 12 of 35 cells") < page.index("<table")
    with_plan(out, run.records)  # all of it is there now
    report, _ = read_report(out)
    report.write(out)
    assert "INCOMPLETE" not in (out / "LEADERBOARD.md").read_text() + (out / "report.html").read_text()
    store.write_json(out / "run.json", {"schema": 1, "command": COMMAND})  # from before plans were written down
    assert "INCOMPLETE" not in "".join(lines_of(out))


def test_a_command_given_up_before_its_first_cell_leaves_the_board_complete(run: Run, tmp_path: Path):
    """Two commands of one directory: the first was stopped at once, the second went through."""
    out = models(run, 2).write(tmp_path)
    plans = {"bench run --epochs 100": [f"{i:020x}" for i in range(4)], COMMAND: [r["key"] for r in run.records]}
    store.write_json(out / "run.json", {"schema": 1, "command": "\n".join(plans), "planned": plans})
    assert "INCOMPLETE" not in lines_of(out)[0]
    assert lines_of(out, keys=plans["bench run --epochs 100"])[0] == "INCOMPLETE: 0 of 4 cells."  # on its own screen
    plans["bench run --epochs 100"].append(run.records[0]["key"])  # as if one of its cells were there
    store.write_json(out / "run.json", {"schema": 1, "command": "\n".join(plans), "planned": plans})
    assert lines_of(out)[0] == "INCOMPLETE: 4 of 8 cells."
    assert "INCOMPLETE" not in lines_of(out, keys=plans[COMMAND])[0]


@pytest.mark.parametrize("name", ["breast-retina", "phantoms", "efficiency"])
def test_published_runs_fit(name: str):
    for width in (80, 140):
        lines = lines_of(RESULTS / name, width)
        assert len(lines) <= 25 and max(len(line) for line in lines if not line.startswith("Next: ")) <= width


def test_names_are_shortened_and_stay_different():
    names = ["swin_tiny_patch4_window7_224", "timm:swin_tiny_patch4_window7_224", "medmamba_tiny[branch=conv]",
             "medmamba_tiny[branch=ssm]", "resnet18", "x" * 40 + "a", "x" * 40 + "b", "x" * 50 + "b"]  # fmt: skip
    assert shortened(names[2:5], 20) == ["medmamba_t…nch=conv]", "medmamba_t…anch=ssm]", "resnet18"]
    assert shortened(names[:1], 20) == ["swin_tiny"]
    assert shortened(names, 60) == names
    for width in (12, 16, 20, 30):
        short = shortened(names, width)
        assert len(set(short)) == len(names) and max(map(len, short)) <= width


def test_colour_only_where_there_is_a_terminal_and_only_what_its_encoding_has(full_run: Run, tmp_path: Path):
    report, _ = read_report(full_run.write(tmp_path))
    for encoding in ("utf-8", "latin-1", "ascii"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        print_screen(report, tmp_path, Console(file=stream, width=80))
        stream.flush()
        said = raw.getvalue().decode(encoding)
        assert "\x1b" not in said and "resnet18" in said


def test_print_shows_every_table_and_writes_nothing(full_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = full_run.write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["leaderboard", str(out), "--print"]) == 0
    said = capsys.readouterr().out
    assert "Growth with the image" in said and "Without a result" in said and len(said.splitlines()) > 100
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert main(["leaderboard", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 25 and (out / "LEADERBOARD.md").is_file()
