"""Information on the built-in datasets, read from ``sets.toml`` beside this file: no data file, no torch."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bench.registry import DatasetInfo, datasets

FILE = Path(__file__).with_name("sets.toml")
SETS = tomllib.loads(FILE.read_text(encoding="utf-8"))
MEDMNIST_PAPER = "Yang et al., MedMNIST v2, Scientific Data 10:41 (2023), doi:10.1038/s41597-022-01721-8"
_FIELDS = {field.name for field in fields(DatasetInfo)}


def _read(section: str, name: str) -> DatasetInfo:
    common, own = SETS[section]["common"], SETS[section][name]
    both = {**common, **own}
    train, val, test = both["counts"]
    issues = (*own.get("known_issues", ()), *common.get("known_issues", ()))
    told: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in both.items() if key in _FIELDS}
    if section == "medmnist":
        told["citation"] += f"; {MEDMNIST_PAPER}"
    if "summary" not in told:
        kind = "findings" if told["task"] == "multi-label" else "classes"
        images = f", {both['images']:,} images" if "images" in both else ""
        told["summary"] = f"{told['modality']}: {len(told['classes'])} {kind}{images}"
    return DatasetInfo(name=name, n_train=train, n_val=val, n_test=test, traps=issues, origin=f"{FILE}", **told)


for _section, _sets in SETS.items():
    _known = [_read(_section, _name) for _name in _sets if _name != "common"]
    for _info in _known:
        datasets.add(_info)
    for _info in _known if _section == "phantoms" else ():
        datasets.add(
            replace(
                _info,
                name=f"{_info.name}_shifted",
                adapter="bench.datasets.phantoms:ShiftedPhantom",
                summary=f"{_info.name} from another scanner (noise, contrast, scale), for --transfer",
                groups=("phantoms_shifted",),
            )
        )

datasets.alias("all", ("medmnist", "phantoms"))
