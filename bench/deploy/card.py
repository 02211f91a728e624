"""The model card (Mitchell et al., "Model Cards for Model Reporting", 2019) of an exported model, from its Records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bench.deploy.bundle import MULTI, Bundle
from bench.metrics.one_vs_rest import Array, correct, one_vs_rest
from bench.record.cells import few_labels, track_of, tuned_over
from bench.record.store import Record
from bench.record.types import Recipe
from bench.registry import DatasetInfo
from bench.report.rows import tuned_text
from bench.stats import Interval, Share, bootstrap_interval, share
from bench.stats.cluster import codes_of, two_rates

FEWEST = 10  # images of a subgroup that is reported
MOST = 12  # subgroups of a column
Arrays = Mapping[str, Array]
COLUMNS = "images | AUC | accuracy | sensitivity | specificity |\n| --- | ---: | --- | --- | --- | --- |"
CHECKS = {
    "pytorch_against_record": "PyTorch against the scores of its training run",
    "onnx_against_pytorch": "ONNX against PyTorch",
}


def card(bundle: Bundle, info: DatasetInfo, records: Sequence[Record], arrays: Sequence[Arrays]) -> str:
    """Write the card as Markdown."""
    blocks = {
        f"# {bundle.model} for {bundle.dataset}": _summary(bundle),
        "## Data": _data(bundle, info, records[0]),
        "## Training": _training(bundle, records),
        "## Results on the test split": _results(bundle, arrays),
        **_subgroups(bundle, arrays[0]),
        "## Limits": _limits(bundle, records, arrays),
        "## Use": _use(bundle),
        "## Licence": (
            f"- Network's code: {bundle.licences.get('model') or 'not stated'}.",
            *_of_the_weights(records[0]),
            f"- Dataset: {bundle.licences.get('dataset') or 'not stated'}. Its terms decide who may have the weights.",
        ),
    }
    return "\n\n".join(f"{title}\n\n" + "\n".join(lines) for title, lines in blocks.items()) + "\n"


def _summary(bundle: Bundle) -> Iterator[str]:
    answers = "findings, each yes or no" if bundle.task == MULTI else "classes"
    classes = ", ".join(bundle.classes)
    yield f"A network that gives an image a probability for each of {len(bundle.classes)} {answers}: {classes}."
    if bundle.positive_class:
        guess = " (a guess from the names; check it)" if bundle.positive_class_guessed else ""
        yield f"The positive class is **{bundle.positive_class}**{guess}."
    if len(bundle.members) > 1:
        yield f"Probabilities are the mean of {len(bundle.members)} networks, one a fold."
    yield "It is a research result, not a medical device."


def _data(bundle: Bundle, info: DatasetInfo, record: Record) -> Iterator[str]:
    look = bundle.training_images
    known = (("train", info.n_train), ("validation", info.n_val), ("test", info.n_test))
    counts = [f"{n:,} {name}" for name, n in known if n is not None]
    held = f" ({', '.join(counts)} images)" if counts else ""
    yield f"- Dataset: {bundle.dataset}{held}."
    (low_h, low_w), (high_h, high_w) = look.sizes
    sizes = f"{low_w} x {low_h}" + (f" to {high_w} x {high_h}" if look.sizes[0] != look.sizes[1] else "")
    yield f"- Images: {sizes} pixels, {'gray' if look.gray > 0.99 else 'colour'}, as a look at {look.images:,} shows."
    said = record["metrics"].get("data") or record.get("data") or {}
    for finding in said.get("findings", ()):
        yield f"- {finding['severity'].capitalize()}: {finding['text']}."


def _training(bundle: Bundle, records: Sequence[Record]) -> Iterator[str]:
    spec = records[0]["spec"]
    settings, few = spec["recipe_settings"], few_labels(spec)
    few = f", {few}" if few else ""
    if spec.get("head"):
        start = "pretrained" if spec.get("weights_sha256") else "random"
        yield f"- {bundle.model} with its {start} weights, frozen; of its {bundle.features:,} features the head"
        yield f"  `{spec['recipe']}` makes the logits, one linear layer{few}."
        chosen = records[0]["metrics"].get("chosen") or {}
        yield from (f"- Chosen on validation: {key.replace('_', ' ')} {value:g}." for key, value in chosen.items())
    else:
        start = {"scratch": "random", "finetune": "pretrained"}[track_of(spec)]
        yield f"- {bundle.model}, trained from {start} weights with the recipe `{spec['recipe']}`{few}."
        yield from _schedule(settings, records[0])
    way = f"{bundle.size} pixels a side{f', by `{bundle.rule}`' if bundle.any_size else ''}"
    fed = "" if bundle.size == bundle.resolution else f", fed at {bundle.resolution} by `{bundle.resize}`"
    scaled = f"mean {_numbers(bundle.mean)}, standard deviation {_numbers(bundle.std)} of pixels in 0..1"
    yield f"- Input: {way}{fed}; {scaled}."
    for member, record in zip(bundle.members, records, strict=True):
        fold = "" if member.fold is None else f", fold {member.fold}"
        place = record["environment"].get("hardware") or record["environment"].get("device", "")
        yield f"- Cell {member.key}: seed {member.seed}{fold}, {place}; weights' SHA-256 {member.weights_sha256[:16]}."


def _schedule(settings: Recipe, record: Record) -> Iterator[str]:
    """How a network was trained."""
    chosen = (record["metrics"].get("tuned") or {}).get("chosen") or {}
    rate, batch = ({**settings, **chosen}.get(name) for name in ("learning_rate", "batch_size"))
    how = f"{settings.get('epochs')} epochs, {settings.get('optimizer')}, learning rate {rate}, batch {batch}"
    yield f"- {how}; the epoch was chosen on validation."
    if over := tuned_text(tuned_over(settings)):
        yield f"- On validation too: {over}; taken {', '.join(f'{key} {value:g}' for key, value in chosen.items())}."


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in dict.fromkeys(values))


def _results(bundle: Bundle, arrays: Sequence[Arrays]) -> Iterator[str]:
    yield f"| networks | {COLUMNS}"
    for member, found in zip(bundle.members, arrays, strict=True):
        name = f"fold {member.fold}" if member.fold is not None else f"seed {member.seed}"
        yield _row(name, bundle, found, np.full(len(found["test_labels"]), True))
    once = " (patients count once)" if "test_patients" in arrays[0] else ""
    yield f"\n95 % intervals over other test images{once}: AUC by bootstrap, the others by Wilson. Training again would"
    yield "move them too; one network cannot say by how much."
    if bundle.thresholds and bundle.task != MULTI:
        yield f"Sensitivity and specificity are of {bundle.positive_class}, at the threshold {bundle.thresholds[0]:.4g}"
        yield "that validation chose (Youden)."
    elif bundle.task == MULTI:
        at = ", ".join(f"{name} {value:.3g}" for name, value in zip(bundle.classes, bundle.thresholds, strict=True))
        yield f"Thresholds, chosen on validation (Youden): {at}."


def _row(name: str, bundle: Bundle, found: Arrays, at: Array) -> str:
    """The figures of one network on the test images ``at``; sensitivity and specificity only of two classes."""
    scores, labels = found["test_scores"][at], found["test_labels"][at]
    patients = found["test_patients"][at] if "test_patients" in found else None
    codes = codes_of(patients)
    area = bootstrap_interval(labels, scores, "auc", name=bundle.dataset, patients=patients)
    figures: list[Interval | Share] = [area, share(correct(scores, labels), codes)]
    if bundle.thresholds and bundle.task != MULTI:
        columns, targets = one_vs_rest(scores, labels, bundle.classes.index(bundle.positive_class))
        rates = two_rates((columns[:, 0] >= bundle.thresholds[0]).astype(float), targets[:, 0], codes)
        figures += [rates.sensitivity, rates.specificity]
    shown = [
        "not defined" if np.isnan(one.value) else f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
        for one in figures
    ]
    return f"| {name} | {len(labels):,} | {' | '.join([*shown, *['by class only'] * (4 - len(shown))])} |"


def _subgroups(bundle: Bundle, found: Arrays) -> dict[str, list[str]]:
    """A table for each column that the predictions hold, of the first network."""
    tables = {}
    for column in [name for name in found if name.startswith("test_group_")]:
        values, name = found[column], column.removeprefix("test_group_")
        kept = [value for value in np.unique(values) if value and (values == value).sum() >= FEWEST]
        if 1 < len(kept) <= MOST:
            rows = [_row(value, bundle, found, values == value) for value in kept]
            tables[f"## By {name}"] = [f"| {name} | {COLUMNS}", *rows]
    return tables


def _limits(bundle: Bundle, records: Sequence[Record], arrays: Sequence[Arrays]) -> Iterator[str]:
    labels = arrays[0]["test_labels"]
    several = labels.ndim > 1 and labels.shape[1] > 1
    counts = labels.sum(axis=0) if several else np.bincount(labels.reshape(-1), minlength=len(bundle.classes))
    yield f"- Tested on {len(labels):,} images of this dataset only, {counts.min():,} of the rarest class."
    if "test_patients" in arrays[0]:
        yield f"- These are of {len(set(arrays[0]['test_patients'].tolist())):,} patients."
    else:
        yield "- The data do not say which images are of one patient, so intervals may be too narrow."
    chosen_on = sum(len(found["val_labels"]) for found in arrays)
    what = "threshold and temperature were" if bundle.thresholds else "temperature was"
    yield f"- The {what} chosen on {chosen_on:,} validation images; where the disease is rarer or the images are"
    yield "  made otherwise, choose anew."
    ece = records[0]["metrics"].get("test_ece_scaled")
    if ece is not None:
        yield f"- Calibrated (temperature {bundle.temperature:.3g}): expected calibration error {ece:.3f} on test."
    yield "- An image unlike the training images is scored all the same, with a warning. No warning is no guarantee."


def _of_the_weights(record: Record) -> Iterator[str]:
    """Where the pretrained weights come from, and their licence."""
    if said := record["metrics"].get("weights"):
        trained = f", trained on {said['trained_on']}" if said.get("trained_on") else ""
        yield f"- Pretrained weights: {said.get('licence') or 'not stated'} ({said.get('source')}{trained})."


def _use(bundle: Bundle) -> Iterator[str]:
    yield "```\nbench predict DIR IMAGES --out scores.csv\n```\n"
    how = "sigmoid" if bundle.task == MULTI else "softmax"
    yield f"`model.json` says how an image is prepared. The network gives logits; their {how} is the probability."
    for name, value in bundle.checks.items():
        yield f"Checked on test images, {CHECKS.get(name, name)}: largest difference of a probability {value:.1e}."
