"""What of the tool is part of an efficiency Cell's key: the sources of its kernels, not its version."""

from __future__ import annotations

import shutil

import pytest

from bench.machine import versions
from bench.plan import backend, plan
from bench.sweep import config


def keys() -> set[str]:
    flags = {"sweep.models": "medmamba_tiny", "sweep.kinds": "efficiency", "run.device": "cpu"}
    return set(plan.make_plan(config.load(None, None, flags)).cells)


@pytest.fixture(autouse=True)
def forget():
    backend.kernels_digest.cache_clear()
    yield
    backend.kernels_digest.cache_clear()
    versions.library_versions.cache_clear()


def test_a_release_or_an_unused_kernel_library_repeats_no_measurement(monkeypatch):
    before = keys()
    installed = versions.version
    monkeypatch.setattr(
        versions, "version", lambda name: {"medbench": "9.9.9", "mamba-ssm": "9.9"}.get(name) or installed(name)
    )
    versions.library_versions.cache_clear()
    assert versions.library_versions()["medbench"] == "9.9.9"
    assert keys() == before
    monkeypatch.setattr(versions, "version", lambda name: "9.9.9" if name == "torch" else installed(name))
    versions.library_versions.cache_clear()
    assert not keys() & before


def test_a_changed_kernel_is_another_cell_and_another_backends_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDBENCH_SCAN_BACKEND", "cpu")
    folder = tmp_path / "backends"
    shutil.copytree(backend.BACKENDS, folder)
    before = keys()
    monkeypatch.setattr(backend, "BACKENDS", folder)
    backend.kernels_digest.cache_clear()
    assert keys() == before
    for name, changes in (("triton/walks.py", False), ("scan_simd.h", True)):
        with (folder / name).open("a") as file:
            file.write("\n")
        backend.kernels_digest.cache_clear()
        assert (keys() != before) is changes


def test_every_backend_has_sources():
    assert all(list(backend.BACKENDS.glob(pattern)) for patterns in backend.SOURCES.values() for pattern in patterns)


def test_the_kernel_of_mamba_ssm_is_its_library():
    assert "mamba-ssm" not in backend.deciding_versions("triton")
