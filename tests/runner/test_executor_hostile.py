"""Plug-ins that misbehave: each is a Record of its own, and the Cells before and after it do not notice."""

import re
import time
from pathlib import Path

import psutil
import pytest

from bench.record import store
from tests.runner.runs import PLUGIN, run

HERE = Path(__file__).parent
# What was tried -> status, and what the reason says. The same table is in the report of this test.
EXPECTED = {
    "hostile_segfault": ("failed", "SIGSEGV"),
    "hostile_exit": ("failed", "SystemExit: good bye"),
    "hostile_end": ("failed", "exit status 0"),
    "hostile_mute": ("failed", "MuteError"),
    "hostile_unpicklable": ("failed", "LocalError: holds a lambda"),
    "hostile_own": ("failed", "Own: of its own kind"),
    "hostile_recursion": ("failed", "RecursionError"),
    "hostile_no_module": ("failed", "'str'"),
    "hostile_closes": ("failed", "without a result"),
    "hostile_noise": ("failed", "ValueError"),
    "hostile_children": ("ok", ""),
    "hostile_wanders": ("ok", ""),
    "place_plain": ("ok", ""),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("hostile")
    patch.setenv("MEDBENCH_CACHE", str(folder / "cache"))
    patch.chdir(folder)  # away from the bench.toml of the checkout
    plugins = [str(PLUGIN), str(HERE / "hostile_plugin.py")]
    run([*EXPECTED], folder / "run", plugins=plugins, **{"run.threads": 1, "run.timeout_s": 240})
    patch.undo()
    return folder / "run", {r["spec"]["model"]: r for r in store.read_records(folder / "run")[0]}


def test_each_is_a_record(found):
    _, records = found
    assert {model: record["status"] for model, record in records.items()} == {
        model: status for model, (status, _) in EXPECTED.items()
    }
    for model, (_, said) in EXPECTED.items():
        assert said in records[model]["reason"], (model, records[model]["reason"])
        assert len(records[model]["reason"]) <= 400 and "\n" not in records[model]["reason"]


def test_reasons_and_logs_hold_no_control_characters_for_a_terminal(found):
    _, records = found
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", records["hostile_noise"]["reason"])


def test_what_a_worker_leaves_behind_is_ended(found):
    out, records = found
    (pid,) = re.findall(r"child (\d+)", (out / "logs" / f"{records['hostile_children']['key']}.log").read_text())
    end = time.monotonic() + 20
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != "zombie" and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie"


def test_records_stay_readable_and_complete(found):
    out, records = found
    for model in ("hostile_wanders", "place_plain"):
        assert (out / "predictions" / f"{records[model]['key']}.npz").stat().st_mode & 0o777 == 0o644
    assert not list(out.rglob(".*")) and not (out / "claims").exists()
