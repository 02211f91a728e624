"""The command ``bench``: parses, prints, decides nothing."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from bench.plan.plan import Plan
    from bench.sweep.config import Loaded, Sweep

# Exit codes: 0 fine; 1 cells failed, or doctor misses something; 2 usage, configuration or data; 130 interrupted.
FAILED, USAGE, INTERRUPTED = 1, 2, 130
NOTHING_LEFT = "bench: no cell was left to run"

# By their files: the module that reads them would cost every `bench --help` its imports.
RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "sweep" / "recipes").glob("*.toml"))
SWEEP_FLAGS: dict[str, tuple[str, str]] = {
    "--models": (
        "sweep.models",
        "all, a family, ablations, twins, globs, name[key=value], timm:<name>; comma-separated",
    ),
    "--datasets": (
        "sweep.datasets",
        "all, medmnist, phantoms, globs, names, folder:PATH, csv:PATH[image=..,label=..], hf:NAME; comma-separated",
    ),
    "--sizes": ("sweep.sizes", "the datasets' own side lengths in pixels: 28,64,128,224"),
    "--resolutions": ("sweep.resolutions", "side lengths the models are fed, also of the efficiency cells"),
    "--resize": ("sweep.resize", "from size to resolution: auto, native, nearest, bilinear, bicubic, pad"),
    "--seeds": ("sweep.seeds", "seeds of the accuracy cells: 0,1,2"),
    "--recipe": ("sweep.recipe", f"{', '.join(RECIPES)}, or a TOML file"),
    "--epochs": ("sweep.epochs", "epochs instead of the recipe's"),
    "--device": ("run.device", "auto, cpu, cuda, cuda:N"),
    "--kinds": ("sweep.kinds", "accuracy,efficiency"),
    "--data-root": ("run.data_root", "folder of the dataset files"),
    "--out": ("run.out", "the run directory; running again resumes it (default results/<preset>, else results/sweep)"),
    "--threads": ("run.threads", "CPU threads of a worker"),
    "--pack": ("run.pack", "accuracy cells that share a GPU, or the cores; efficiency cells always run alone"),
    "--timeout": (
        "run.timeout_s",
        "seconds after which a job (a cell, or one round of an efficiency cell) ends as timeout",
    ),
    "--executor": ("run.executor", "where cells run: local (this machine), ray (a Ray cluster; docs/clusters.md)"),
    "--ray-address": ("run.ray_address", "auto or host:port of a cluster; without it one of this machine is started"),
    "--retry": ("run.retry", "statuses to run again: failed,timeout,oom,diverged"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.handler is _ops:
        options.arguments = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}; see `bench {argv[0]} --help`")
    options.command_line = shlex.join(["bench", *argv])
    try:
        return int(options.handler(options))
    except BrokenPipeError:  # the reader of our output has gone: `bench list models | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _expected(error):
            raise
        print(f"bench: {error}", file=sys.stderr)
        return USAGE


def _expected(error: Exception) -> bool:
    """Tell errors that are messages to the user from faults of the tool, without importing what was not used."""
    expected = {
        ("bench.sweep.config", "ConfigError"),
        ("bench.registry.info", "RegistryError"),
        ("bench.data.download", "DataError"),
        ("bench.record.store", "StoreError"),
    }
    return any((kind.__module__, kind.__name__) in expected for kind in type(error).__mro__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Which architecture for which medical images: accuracy, FLOPs, speed, memory, measured together.",
        epilog="examples:\n"
        "  bench run --preset quick                              a sweep in minutes, nothing to download\n"
        "  bench run --models all --datasets medmnist            the main job\n"
        "  bench plan --models resnet,medmamba_tiny[branch=ssm] --datasets breastmnist\n"
        "  bench list models\n"
        "  bench leaderboard results/quick                       rebuild the boards of a run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "plan, run what is not done yet, write and print the leaderboard")
    _add_sweep(run)
    run.add_argument("--dry-run", action="store_true", help="show the plan and run nothing")

    plan = _command(commands, "plan", _plan, "show the cells of a sweep, what is unsupported and why, and a rough time")
    _add_sweep(plan)
    plan.add_argument("--json", action="store_true", help="machine-readable")

    listing = _command(commands, "list", _list, "list models or datasets")
    listing.add_argument("what", choices=["models", "datasets"])
    listing.add_argument("--json", action="store_true", help="machine-readable")
    _add_config(listing)

    fetch = _command(commands, "fetch", _fetch, "download dataset files, resumed and verified")
    fetch.add_argument("--datasets", required=True, help="medmnist, globs, names; comma-separated")
    fetch.add_argument("--sizes", help="comma-separated side lengths (default: those of bench.toml, else 28)")
    fetch.add_argument("--data-root", help="folder to put them in (default: that of bench.toml, else the user's)")
    _add_config(fetch)

    export = _command(commands, "export", _export, "write every record of a run as one table")
    export.add_argument("directory", type=Path)
    export.add_argument("file", type=Path, help="ends in .csv, .json or .parquet")

    look = _command(
        commands, "inspect", _inspect,
        "what a dataset holds: classes, sizes, duplicates and patients across splits, unreadable files, known traps",
        epilog="exit codes: 0 sound; 1 broken images, or equal pixels or one patient in two splits; 2 usage or data",
    )  # fmt: skip
    look.add_argument("dataset", help="a name, or folder:PATH, csv:PATH[image=..,label=..], hf:NAME[config]")
    look.add_argument("--size", type=int, help="side length in pixels, of a set that exists in several (the smallest)")
    look.add_argument("--data-root", help="folder of the dataset files (default: that of bench.toml, else the user's)")
    look.add_argument("--out", type=Path, metavar="DIR", help="write a contact sheet (PNG), findings and JSON there")
    look.add_argument("--json", action="store_true", help="machine-readable")
    _add_config(look)

    board = _command(commands, "leaderboard", _leaderboard, "rebuild the boards of a run from its records")
    board.add_argument("directory", type=Path)

    report = _command(commands, "report", _report, "write the boards, report.html and all figures (PNG, SVG) of a run")
    report.add_argument("directory", type=Path)
    report.add_argument(
        "--no-figures", action="store_true", help="leave figures/ as it is; takes a second, not a minute"
    )

    merge = _command(commands, "merge", _merge, "join runs: their records, and what belongs to them, in one directory")
    merge.add_argument("out", type=Path, metavar="OUT", help="a run directory, new or not; what it holds stays")
    merge.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories, only read")

    doctor = _command(commands, "doctor", _doctor, "what this machine has, and what that means")
    doctor.add_argument("--data-root", type=Path)
    _add_config(doctor)
    doctor.add_argument("--json", action="store_true", help="machine-readable")

    _add_explain(commands)
    _add_gate(commands)
    _add_instruments(commands)
    return parser


def _add_gate(commands: Any) -> None:
    compare = _command(commands, "compare", _compare, "two runs, or two models: what differs, and is it significant")
    compare.add_argument("a", metavar="A", help="RUN or RUN:model")
    compare.add_argument("b", metavar="B", help="the same of the other side; differences are of B against A")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the figures")

    baseline = _command(commands, "baseline", _baseline, "write the compact file that `bench check` compares with")
    baseline.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="several of one version add up their rounds"
    )
    baseline.add_argument("--out", required=True, type=Path, metavar="FILE")
    baseline.add_argument(
        "--allow-incomplete", action="store_true", help="also of a run that was interrupted: no check misses the rest"
    )
    baseline.add_argument("--images", type=int, default=2000, help="test images kept of a larger set (default 2000)")

    check = _command(
        commands, "check", _check, "compare a run with a baseline and fail where it got worse",
        epilog="exit codes: 0 fine, 1 regression, 2 usage or broken input, 3 nothing comparable, 4 cells failed or "
        "absent (where several hold: 2, 1, 4, 3)",
    )  # fmt: skip
    check.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="several of one version add up their rounds")
    check.add_argument("--baseline", required=True, type=Path, metavar="FILE", help="of `bench baseline`")
    check.add_argument("--allow-missing", action="store_true", help="cells that the run does not have are no failure")
    check.add_argument("--alpha", type=_share, default=0.05, help="family-wise error of the whole check (0.05)")
    for flag, least, text in (
        ("--min-accuracy", 0.01, "AUC or ACC"),
        ("--min-speed", 0.05, "throughput"),
        ("--min-memory", 0.05, "peak memory"),
    ):  # fmt: skip
        check.add_argument(flag, type=_share, default=least, help=f"the smallest loss of {text} that counts ({least})")
    noise = "standard deviation of AUC and ACC over trainings, assumed where there is one seed (0.02); 0: no training"
    check.add_argument("--seed-noise", type=_share, default=0.02, help=noise)
    check.add_argument("--json", type=Path, metavar="FILE", help="write all findings")
    check.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number between 0 and 1, as 0.05")
    return value


def _add_explain(commands: Any) -> None:
    explain = _command(
        commands, "explain", _explain, "where a trained model looks: overlays on test images, receptive fields",
        epilog="examples:\n"
        "  bench explain results/quick 3f2a            one cell, by its key or how that begins (`all`: every one)\n"
        "  bench explain --erf-only resnet18,swin --resolution 64,224",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    explain.add_argument("directory", nargs="?", type=Path, metavar="RUN", help="a run made with --keep-weights")
    explain.add_argument("cells", nargs="*", metavar="CELL", help="keys or their beginnings, or `all`")
    explain.add_argument("--erf-only", metavar="MODELS", help="receptive fields of networks without a run, on noise")
    explain.add_argument("--resolution", default="64", metavar="R", help="of --erf-only; comma-separated (default 64)")
    explain.add_argument("--out", type=Path, default=Path("explain"), help="of --erf-only (default explain)")
    explain.add_argument(
        "--per-class", type=_count, default=2, help="right, and wrong, images of each class (default 2)"
    )
    explain.add_argument(
        "--images", type=_count, default=16, help="images a receptive field is the mean of (default 16)"
    )
    explain.add_argument("--device", default="cpu", help="cpu or cuda:N (default cpu)")
    explain.add_argument(
        "--data-root", help="folder of the dataset files (default: that of bench.toml, else the user's)"
    )
    _add_config(explain)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1")
    return int(text)


def _add_instruments(commands: Any) -> None:
    # The instrument parses its own flags, --help included: it also runs as `python -m bench.ops.benchmark.run`.
    _command(commands, "ops", _ops, "check and time the selective-scan backends side by side", add_help=False)
    profile = _command(commands, "profile", _profile, "where a model's time goes: per stage and per operator")
    profile.add_argument("model")
    profile.add_argument("--resolution", type=int, default=224)
    profile.add_argument("--batch", type=int, help="images a step (default 1, with --train 8)")
    profile.add_argument("--device", default="cpu", help="cpu or cuda:N (default cpu)")
    profile.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    profile.add_argument("--train", action="store_true", help="a whole training step instead of a forward pass")
    profile.add_argument("--compile", action="store_true", help="time a compiled step as well")
    profile.add_argument("--threads", type=int, default=0, help="CPU threads (default all)")
    profile.add_argument("--picture", type=Path, help="write a flame-style picture (PNG)")
    profile.add_argument("--trace", type=Path, help="write the Chrome trace (JSON)")
    profile.add_argument("--json", action="store_true", help="machine-readable")
    _add_config(profile)


def _version() -> str:
    import bench

    return f"medbench {bench.__version__}"


def _command(commands: Any, name: str, handler: Any, text: str, **more: Any) -> argparse.ArgumentParser:
    description = text[0].upper() + text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=description, **more)
    parser.set_defaults(handler=handler)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file instead of ./bench.toml")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--preset", metavar="NAME", help="quick (minutes on a laptop), standard, paper")
    for flag, (key, text) in SWEEP_FLAGS.items():
        parser.add_argument(flag, dest=key, metavar=flag.strip("-").upper().replace("-", "_"), help=text)
    parser.add_argument(
        "--transfer", action="append", metavar="SOURCE:TARGET[,TARGET]", dest="sweep.transfer",
        help="evaluate what was trained on one dataset on others, over shared classes; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--keep-weights", action="store_true", help="keep the trained weights, RUN/weights/<key>.safetensors"
    )
    parser.add_argument("--skip-missing", action="store_true", help="go on without datasets whose files are missing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="any key of bench.toml; repeatable"
    )


def _loaded(options: argparse.Namespace) -> Loaded:
    from bench.sweep import config

    flags: dict[str, Any] = {}
    for flag, (key, _) in SWEEP_FLAGS.items():
        value = getattr(options, key)
        flags[key] = value
        if flag == "--resolutions":
            flags["efficiency.resolutions"] = value
    flags["sweep.transfer"] = getattr(options, "sweep.transfer")
    flags["run.skip_missing"] = True if options.skip_missing else None
    flags["run.keep_weights"] = True if options.keep_weights else None
    return config.load(options.config, options.preset, flags, options.sets)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _run(options: argparse.Namespace) -> int:
    from bench.runner.sweep import run_sweep

    if options.dry_run:
        options.json = False
        return _plan(options)
    loaded = _loaded(options)
    outcome = run_sweep(loaded, _console(), options.command_line)
    if outcome.interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: a second Ctrl-C must not change the exit code
        print(f"interrupted: the same command goes on where it stopped ({outcome.out})", file=sys.stderr)
        return INTERRUPTED
    if not outcome.keys:
        print(NOTHING_LEFT, file=sys.stderr)
        return USAGE
    if outcome.failed:
        print(
            f"{outcome.failed} cell{'s' * (outcome.failed != 1)} failed; try again with --retry failed,timeout",
            file=sys.stderr,
        )
    return FAILED if outcome.failed else 0


def _plan(options: argparse.Namespace) -> int:
    from bench.cli.listing import plan_json, print_plan
    from bench.plan.plan import make_plan
    from bench.runner.sweep import run_directory

    loaded = _loaded(options)
    plan: Plan = make_plan(loaded)
    out = run_directory(loaded)
    if options.json:
        print(json.dumps(plan_json(plan, out), indent=1))
    else:
        print_plan(plan, out, _console())
    if not plan.cells:
        print(NOTHING_LEFT, file=sys.stderr)
    return 0 if plan.runnable and plan.cells else USAGE


def _configured(options: argparse.Namespace) -> Sweep:
    """Read the configuration and load its plug-ins."""
    from bench import registry
    from bench.sweep import config

    loaded = config.load(options.config)
    registry.load_plugins(loaded.sweep.plugins, loaded.base)
    return loaded.sweep


def _list(options: argparse.Namespace) -> int:
    from bench.cli.listing import datasets_json, models_json, print_datasets, print_models

    _configured(options)
    if options.json:
        print(json.dumps(models_json() if options.what == "models" else datasets_json(), indent=1, ensure_ascii=False))
    elif options.what == "models":
        print_models(_console())
    else:
        print_datasets(_console())
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from bench import registry
    from bench.data.files import fetch_datasets
    from bench.runner.progress import fetch_bars
    from bench.sweep import config

    sweep = _configured(options)
    try:
        sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else sweep.sweep.sizes
    except ValueError:
        raise config.ConfigError(f"--sizes {options.sizes}: write side lengths in pixels, as 28,64") from None
    named = options.data_root or sweep.run.data_root
    root = Path(named).expanduser() if named else None
    with fetch_bars(_console()) as progress:
        paths = fetch_datasets(registry.split_names(options.datasets), sizes, root, progress)
    print("\n".join(f"verified: {path}" for path in paths) or "nothing to fetch: these datasets need none, or have it")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from bench.cli.inspect import run_inspect

    named = options.data_root or _configured(options).run.data_root
    root = Path(named).expanduser() if named else None
    sound = run_inspect(options.dataset, _console(), options.size, root, options.out, options.json)
    return 0 if sound else FAILED


def _leaderboard(options: argparse.Namespace) -> int:
    from bench.runner.sweep import rebuild_boards

    rebuild_boards(options.directory, _console())
    return 0


def _compare(options: argparse.Namespace) -> int:
    from bench.report.compare.compare import run_compare

    return run_compare(options.a, options.b, _console(), options.json)


def _baseline(options: argparse.Namespace) -> int:
    from bench.report.compare.gate_output import run_baseline

    allowed = options.allow_incomplete
    return run_baseline(options.runs, options.out, options.images, _console(), allow_incomplete=allowed)


def _check(options: argparse.Namespace) -> int:
    from bench.report.compare.gate import Options
    from bench.report.compare.gate_output import run_check

    least = Options(
        options.alpha,
        options.min_accuracy,
        options.min_speed,
        options.min_memory,
        options.seed_noise,
        options.allow_missing,
    )
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    return run_check(
        options.runs, options.baseline, least, _console(),
        json_path=options.json, junit_path=options.junit, summary_path=Path(summary) if summary else None,
    )  # fmt: skip


def _report(options: argparse.Namespace) -> int:
    from bench.report.build import rebuild

    paths, problems = rebuild(options.directory, figures=not options.no_figures)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print("written: " + ", ".join(str(path) for path in paths))
    return 0


def _explain(options: argparse.Namespace) -> int:
    named = options.data_root or _configured(options).run.data_root
    from bench.cli.explain import explain

    explain(options, Path(named).expanduser() if named else None, _console())
    return 0


def _export(options: argparse.Namespace) -> int:
    from bench.report.write.csv import export_records

    rows, problems = export_records(options.directory, options.file)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"written: {options.file} ({rows} records)")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from bench.record.merge import merge

    merged = merge(options.out, options.runs)
    for line in merged.notes:
        print(f"note: {line}")
    for line in merged.refused:
        print(f"refused: {line}", file=sys.stderr)
    print(
        f"{merged.out}: {merged.added} record{'s' * (merged.added != 1)} added, "
        f"{merged.replaced} replaced (without a result before), "
        f"{merged.present} {'was' if merged.present == 1 else 'were'} there already, {len(merged.refused)} refused; "
        f"`bench leaderboard {shlex.quote(str(merged.out))}` makes its boards"
    )
    return FAILED if merged.refused else 0


def _doctor(options: argparse.Namespace) -> int:
    from bench.cli.doctor import BAD, examine, print_findings

    named = options.data_root or _configured(options).run.data_root
    findings = examine(Path(named) if named else None)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print_findings(findings, _console())
    return FAILED if any(finding.state == BAD for finding in findings) else 0


def _ops(options: argparse.Namespace) -> int:
    from bench.ops.benchmark.run import main as ops_main

    return int(ops_main(options.arguments))


def _profile(options: argparse.Namespace) -> int:
    from bench.plan.plan import set_omp_wait_policy

    _configured(options)
    set_omp_wait_policy()  # as in the efficiency cells; read when torch is imported
    from bench.measure.profile.profile import main as profile_main

    return int(profile_main(options))
