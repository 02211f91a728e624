"""Tracks: which of a sweep's models are trained from scratch, fine-tuned, or only give features; with how many labels.

Without ``--track`` a model trains as it is named: ``resnet18`` from random weights, ``resnet18[pretrained=true]`` on
from published ones, by the sweep's one recipe. With it, a model is trained in each track that is asked for:

- ``frozen`` and ``finetune`` need weights: ``[pretrained=...]``, ``timm:NAME.TAG`` or ``timm:hf-hub:OWNER/NAME``.
- beside each frozen network stands the same one with random weights, fed alike.
- ``scratch`` is the network without its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.data import weights
from bench.plan.fingerprints import weights_sha256
from bench.registry import ModelSpec
from bench.registry.normalisation import Normalisation, normalisation
from bench.registry.weights import names_weights, with_weights, without_weights
from bench.sweep import heads
from bench.sweep.config import ConfigError, Loaded
from bench.sweep.recipes import Settings

FINETUNE = "finetune"  # the recipe of the track of that name
WANTS_WEIGHTS = ("frozen", "finetune")


@dataclass(frozen=True, slots=True)
class Training:
    """One way in which a sweep trains a model."""

    spec: ModelSpec
    track: str
    recipe: Settings
    weights_sha256: str | None = None
    normalisation: Normalisation | None = None
    head: str | None = None


class Labels(NamedTuple):
    """How many labels are used: ``shots`` a class or a ``fraction``, and the number of the draw."""

    shots: int | None = None
    fraction: float = 1.0
    draw: int = 0


def labels_asked(loaded: Loaded) -> list[Labels]:
    """Every amount of labels of a sweep, each drawn as often as it says."""
    section = loaded.sweep.sweep
    found = []
    for fraction in section.label_fraction:
        found += [Labels(None, fraction, draw) for draw in range(section.draws if fraction < 1 else 1)]
    return found + [Labels(shots, 1.0, draw) for shots in section.shots for draw in range(section.draws)]


def specs_asked(loaded: Loaded, specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """The models of a sweep, with their weights spelt out where a track uses them."""
    wants = set(loaded.sweep.sweep.track) & set(WANTS_WEIGHTS)
    return [with_weights(spec) if wants else spec for spec in specs]


def remarks(loaded: Loaded, specs: Sequence[ModelSpec]) -> list[str]:
    """What a reader of a plan may not expect: models that a track leaves out.

    Raises:
        ConfigError: a track is left without any model.
    """
    asked = loaded.sweep.sweep.track
    bare = [str(spec) for spec in specs if not names_weights(spec)]
    wants = [track for track in asked if track in WANTS_WEIGHTS]
    if loaded.sweep.sweep.tune and asked == ["frozen"]:
        raise ConfigError(f"{loaded.origin('sweep.tune')}: a head on frozen features is not tuned; add another --track")
    if not wants:
        tagged = [str(spec) for spec in specs if "pretrained" not in dict(spec.options) and names_weights(spec)]
        said = f"{', '.join(tagged)}: the tag names weights that are not used; --track frozen,finetune uses them"
        return [said] if tagged and not asked else []
    if len(bare) == len(specs):
        raise ConfigError(
            f"{loaded.origin('sweep.track')}: track {' and '.join(wants)} goes on from pretrained weights, and no "
            "model names any; write resnet18[pretrained=true], timm:NAME.TAG, or name[pretrained=FILE]"
        )
    if not bare:
        return []
    many = f"{', '.join(bare[:4])}{f' and {len(bare) - 4} more' if len(bare) > 4 else ''}"
    rest = "only trained from scratch" if "scratch" in asked else "left out"
    return [f"{many}: named without weights, so {rest} (resnet18[pretrained=true] names some)"]


def trainings(loaded: Loaded, specs: Sequence[ModelSpec], recipe: Settings, fine: Settings) -> list[Training]:
    """Every way in which ``specs`` are trained, once each.

    Args:
        loaded: the sweep.
        specs: as :func:`specs_asked` gives them.
        recipe: of the sweep.
        fine: of the track ``finetune``.
    """
    asked = loaded.sweep.sweep.track
    if not asked:
        return [_as_named(spec, recipe) for spec in specs]
    found: dict[tuple[str, str, str | None, Normalisation | None], Training] = {}
    for track in asked:
        for spec in specs:
            for one in _in_track(loaded, track, spec, recipe, fine):
                found.setdefault((str(one.spec), one.track, one.head, one.normalisation), one)
    return list(found.values())


def _as_named(spec: ModelSpec, recipe: Settings) -> Training:
    sha256 = weights_sha256(spec)
    return Training(spec, "finetune" if sha256 else "scratch", recipe, sha256, _fed(spec, recipe))


def _in_track(loaded: Loaded, track: str, spec: ModelSpec, recipe: Settings, fine: Settings) -> list[Training]:
    if track == "scratch":
        return [Training(without_weights(spec), track, recipe)]
    if not names_weights(spec):
        return []
    try:
        sha256 = weights.locate(spec).sha256
    except ConfigError as error:
        raise ConfigError(f"{loaded.origin('sweep.models')}: model {spec}: {error}") from None
    if track == "finetune":
        return [Training(spec, track, fine, sha256, _fed(spec, fine))]
    fed = _fed(spec, recipe)
    both = ((spec, sha256), (without_weights(spec), None))
    return [
        Training(one, track, heads.resolve(head, recipe), digest, fed, head)
        for one, digest in both
        for head in loaded.sweep.sweep.heads
    ]


def _fed(spec: ModelSpec, recipe: Settings) -> Normalisation | None:
    return normalisation(spec) if recipe["normalisation"] == "weights" else None
