"""``bench submit`` and ``bench verify``: results that others can check, in one file."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bench.cli import flags


def add(commands: flags.Commands) -> None:
    """Add the two commands."""
    submit = flags.command(
        commands, "submit", _submit, "pack the results and scores of a run into one file that others can verify"
    )
    submit.add_argument("run", type=Path, metavar="RUN", help="run directory, also one of `bench score`")
    submit.add_argument(
        "--out", type=Path, metavar="FILE", help="output file (default: RUN.medbench.zip in this folder)"
    )
    submit.add_argument("--author", required=True, metavar="NAME", help="name of the submitter")
    submit.add_argument("--licence", default="CC-BY-4.0", help="licence of the results (default: CC-BY-4.0)")
    submit.add_argument("--note", default="", metavar="TEXT", help="note for readers, such as a link to the code")

    verify = flags.command(
        commands, "verify", _verify, "verify a submission: recompute its figures from its scores",
        epilog="exit codes: 0 no problem, 1 problems, 2 not a submission",
    )  # fmt: skip
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE", help="file written by `bench submit`")
    verify.add_argument("--against", type=Path, action="append", default=[], metavar="DIR",
                        help="folder of runs and submissions that must not hold these results; repeatable")  # fmt: skip
    verify.add_argument("--unpack", type=Path, metavar="DIR", help="unpack the submission into a run directory")
    verify.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")


def _submit(options: argparse.Namespace) -> int:
    from bench.score.submit import ENDING, submit

    out = options.out or Path(options.run.resolve().name + ENDING)
    manifest = submit(options.run, out, options.licence, options.author, options.note)
    cells = sum(name.startswith("cells/") for name in manifest["files"])
    print(f"written: {out} ({cells} results, {out.stat().st_size / 1024:.0f} KiB, {manifest['licence']})")
    if manifest["left_out"]:
        print("left out: " + ", ".join(f"{n} {what}" for what, n in manifest["left_out"].items()))
    print(f"Next: bench verify {shlex.quote(str(out))}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from bench.errors import ConfigError
    from bench.record.store import write_json
    from bench.score.verify import unpack, verify

    if options.unpack and len(options.files) > 1:
        raise ConfigError("--unpack takes one file at a time")
    findings = []
    for path in options.files:
        found = verify(path, options.against)
        about = found.submission.manifest
        print(f"{path}: {len(found.submission.records)} results of {about.get('author')} ({about.get('licence')})")
        print(f"  recomputed: {found.recomputed:,} figures agree with the scores")
        for word, lines in (("problem", found.problems), ("note", found.notes), ("cannot be verified", found.open)):
            for line in lines:
                print(f"  {word}: {line}")
        print("  no problem found" if not found.problems else "  do not accept it as it is")
        findings.append({"file": str(path), "recomputed": found.recomputed, "problems": found.problems,
                         "notes": found.notes, "cannot_be_verified": found.open})  # fmt: skip
        if options.unpack:
            unpack(found, options.unpack)
            print(f"written: {options.unpack}; its leaderboard: bench leaderboard {shlex.quote(str(options.unpack))}")
    if options.json:
        write_json(options.json, findings)
    return flags.FAILED if any(f["problems"] for f in findings) else 0
