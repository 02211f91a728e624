"""The efficiency Cells of a sweep: models x resolutions x batches x precisions x modes on this machine."""

from __future__ import annotations

import itertools

from bench import registry
from bench.machine.compiler import why_not_compiled
from bench.machine.hardware import hardware_name, machine_info
from bench.machine.threads import omp_wait_policy
from bench.plan.backend import deciding_versions, kernels_digest, scan_backend
from bench.plan.base import Plan
from bench.plan.fingerprints import plugin_sha256, weights_sha256
from bench.record.cells import EfficiencyCell
from bench.registry import ModelSpec
from bench.sweep.config import Loaded


def add_efficiency(plan: Plan, loaded: Loaded, specs: list[ModelSpec]) -> None:
    """Add the efficiency Cells of ``specs``; what cannot run is added with its reason."""
    section = loaded.sweep.efficiency
    info = machine_info()
    hardware = hardware_name(plan.device, info)
    backend = scan_backend(plan.device)
    versions, kernels = deciding_versions(backend), kernels_digest(backend)
    no_compiler = why_not_compiled(plan.device) if True in section.compile else None
    resolutions = section.resolutions or loaded.sweep.sweep.resolutions
    grid = itertools.product(resolutions, section.batches, section.precisions, section.compile, section.modes, specs)
    for resolution, batch, precision, compiled, mode, spec in grid:
        model = registry.model_info(spec.name)
        weights_sha256(spec)  # speed does not depend on the weights, but their file must be there to build with
        cell = EfficiencyCell(
            model=str(spec),
            resolution=resolution,
            batch=batch,
            precision=precision,
            compile=compiled,
            mode=mode,
            device=plan.device,
            hardware=hardware,
            threads=plan.threads,
            backend=backend,
            versions=versions,
            kernels=kernels,
            budget_s=section.budget_s,
            rounds=section.rounds,
            omp_wait_policy=omp_wait_policy(),
            model_plugin_sha256=plugin_sha256(model),
        )
        reason = model.unsupported(resolution, dict(spec.options))
        if precision == "tf32" and plan.device == "cpu":
            reason = reason or "tf32 is a mode of CUDA devices"
        if compiled:
            reason = reason or no_compiler
        plan.add(cell, reason)
