"""``bench export-model`` and ``bench predict``: a trained network outside of its run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bench.cli import flags


def add(commands: flags.Commands) -> None:
    """Add both commands."""
    text = "export a trained model: weights, preprocessing, threshold, model card, ONNX"
    export = flags.command(commands, "export-model", _export, text)
    export.add_argument("run", type=Path, metavar="RUN", help="run directory")
    export.add_argument("cell", nargs="?", default="", metavar="CELL",
                        help="key of a cell, its start, or a model (default: the recommended one)")  # fmt: skip
    export.add_argument("--out", type=Path, default=Path("model"), metavar="DIR", help="output folder (default: model)")
    export.add_argument(
        "--dataset", default="", metavar="NAME", help="dataset the model was trained on, if the run has several"
    )
    one = export.add_mutually_exclusive_group()
    one.add_argument("--onnx", action="store_true", default=None, help="fail if no ONNX file can be written")
    one.add_argument("--no-onnx", dest="onnx", action="store_false", help="write no ONNX file")
    flags.add_data_root(export)
    flags.add_config(export)

    text = "run an exported model on images: probabilities, decisions, warnings"
    predict = flags.command(commands, "predict", _predict, text)
    predict.add_argument("model", type=Path, metavar="DIR", help="folder written by `bench export-model`")
    text = "image files, folders (searched recursively), tables of paths, .npz files or datasets (their test split)"
    predict.add_argument("images", nargs="+", metavar="IMAGE", help=text)
    predict.add_argument(
        "--out", type=Path, default=Path("scores.csv"), metavar="FILE", help="output table (default: scores.csv)"
    )
    predict.add_argument("--device", type=flags.device, default="cpu", help="cpu or cuda:N (default: cpu)")
    predict.add_argument("--threads", type=flags.count, help="CPU threads (default: as in training)")
    predict.add_argument("--batch", type=flags.count, help="batch size (default: as in training)")
    predict.add_argument("--onnx", action="store_true", help="use the ONNX file even if PyTorch is installed")
    flags.add_config(predict)


def _export(options: argparse.Namespace) -> int:
    from bench.deploy.export import export_model
    from bench.deploy.which import described, members_of
    from bench.explain.which import where_it_ran

    root = flags.data_root(options)
    run, out = options.run.resolve(), options.out.resolve()
    with where_it_ran(run) as root_of_run:
        records = members_of(run, options.cell, options.dataset)
        for record in records:
            print(f"cell {described(record)}")
        given = (root.resolve() if root else None) if options.data_root else root_of_run or root
        export_model(run, records, out, given, options.onnx, print)
    print(f"written: {options.out} (README.md is the model card)")
    print(f"Next: bench predict {shlex.quote(str(options.out))} IMAGES --out scores.csv")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from bench.deploy.predict import summary, write_scores
    from bench.deploy.session import opened, progress_bar
    from bench.registry import counted

    flags.configured(options)
    model = opened(options.model, options.device, "onnx" if options.onnx else None, options.threads, options.batch)
    with progress_bar() as told:
        predictions = model.predict(options.images, told)
    write_scores(options.out, model.bundle, predictions)
    for line in [
        *summary(predictions),
        f"written: {options.out} ({counted(len(predictions), 'image')}, {model.engine})",
    ]:
        print(line)
    return 0 if any(one.probabilities for one in predictions) else flags.FAILED
