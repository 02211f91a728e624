"""The transfer Cells of a sweep: which trained Cell is evaluated on which other set. Torch-free."""

from __future__ import annotations

from bench import registry
from bench.data.files import Problem, preflight
from bench.plan import class_maps
from bench.plan.base import Plan, resolved
from bench.plan.fingerprints import fingerprint, plugin_sha256
from bench.plan.inputs import resize_rule, unfeedable
from bench.record.cells import AccuracyCell, SharedClass, TransferCell, TrialCell, few_labels
from bench.registry import DatasetInfo, RegistryError
from bench.registry.shared_patients import shares_patients
from bench.sweep.config import ConfigError, Loaded

Met = tuple[SharedClass, ...]


def sources(loaded: Loaded) -> list[str]:
    """Datasets that have to be trained on because a transfer starts from them."""
    return list(dict.fromkeys(source for source, _ in pairs(loaded)))


def pairs(loaded: Loaded) -> list[tuple[str, str]]:
    """Pairs of source and target that ``sweep.transfer`` asks for."""
    found = []
    for text in loaded.sweep.sweep.transfer:
        try:
            source, targets = class_maps.parse(text)
        except class_maps.TransferError as error:
            raise ConfigError(f"{loaded.origin('sweep.transfer')}: {error}") from None
        left = resolved(loaded, "sweep.transfer", registry.expand_datasets, [source])
        right = resolved(loaded, "sweep.transfer", registry.expand_datasets, targets)
        new = [(one, two) for one in left for two in right if one != two]
        if not new:
            where = loaded.origin("sweep.transfer")
            raise ConfigError(f"{where}: transfer {text!r}: source and target are one dataset; name another target")
        found += new
    return list(dict.fromkeys(found))


def _own_maps(loaded: Loaded) -> dict[tuple[str, str], tuple[class_maps.Map, str]]:
    """The maps of [transfer] in bench.toml, and where each stands."""
    found: dict[tuple[str, str], tuple[class_maps.Map, str]] = {}
    for text, own in loaded.sweep.transfer.items():
        where = f"{loaded.origin(f'transfer.{text}')}, [transfer.'{text}']"
        try:
            source, targets = class_maps.parse(text)
            for target in registry.expand_datasets(targets):
                found[registry.expand_datasets([source])[0], target] = own, where
        except (class_maps.TransferError, RegistryError) as error:
            raise ConfigError(f"{where}: {error}") from None
    return found


def add_transfers(plan: Plan, loaded: Loaded) -> None:
    """Add a Cell for each trained Cell of a source and each of its targets, and the targets' missing files."""
    maps = _own_maps(loaded)
    if loaded.sweep.sweep.transfer and loaded.sweep.sweep.folds:
        raise ConfigError(
            f"{loaded.origin('sweep.folds')}: a fold's network has seen most of the set that a transfer starts from; "
            "run --transfer without --folds"
        )
    for source, target in pairs(loaded):
        info = registry.dataset_info(target)
        try:
            met = class_maps.shared_classes(registry.dataset_info(source), info, *maps.get((source, target), ()))
        except class_maps.TransferError as error:
            raise ConfigError(f"{loaded.origin('sweep.transfer')}: {error}") from None
        trained = [
            cell
            for cell in plan.cells.values()
            if isinstance(cell, AccuracyCell)
            and cell.dataset == source
            and cell.track != "frozen"
            and not isinstance(cell, TrialCell)
            and not few_labels(cell.spec())
        ]
        if not trained:
            raise ConfigError(
                f"{loaded.origin('sweep.transfer')}: a transfer evaluates networks trained with all labels, not heads "
                "on frozen features, so add finetune or scratch to --track"
            )
        missing: dict[int, list[Problem]] = {}
        for cell in trained:
            size = class_maps.target_size(info, cell)
            if size not in missing:
                missing[size] = preflight([(info, size)], plan.data_root)
                new = [problem for problem in missing[size] if str(problem) not in map(str, plan.problems)]
                plan.problems += new
                plan.skipped += [str(problem) for problem in new] if loaded.sweep.run.skip_missing else []
            if missing[size] and loaded.sweep.run.skip_missing:
                continue
            _add_transfer(plan, loaded, cell, info, size, met, bool(missing[size]))


def _add_transfer(
    plan: Plan, loaded: Loaded, source: AccuracyCell, target: DatasetInfo, size: int, met: Met, damaged: bool
) -> None:
    resize = source.resize  # as the source was fed where that rule applies to the target, else as the sweep says
    if target.varied or size == source.resolution or resize == "native":
        resize = resize_rule(loaded, target, size, source.resolution)
    cell = TransferCell(
        source=source,
        dataset=target.name,
        size=size,
        resize=resize,
        shared_classes=met,
        shares_patients=shares_patients(source.dataset, target.name),
        data_fingerprint=fingerprint(plan, loaded, target, size, damaged),
        data_plugin_sha256=plugin_sha256(target),
    )
    reason = plan.unsupported.get(cell.source_key)
    fed = registry.dataset_info(source.dataset).channels
    if not reason and not source.recipe["as_rgb"] and fed != target.channels:
        reason = f"it was trained on {fed} channels (as_rgb = false), images of {target.name} have {target.channels}"
    reason = reason or unfeedable(target, size, source.resolution, resize, plan.data_root, cell.data_fingerprint)
    plan.add(cell, reason)
