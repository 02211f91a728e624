"""What a sweep will cost before anything has run: time, disk, memory. Torch-free; good to a factor of three.

A training takes the larger of two times: its multiply-adds (three passes for forward and backward) at the rate such a
device usually reaches, or the device's least time a step; and the optimizer's walk over the weights at every step. A
run in progress corrects the estimate by the ratio of measured to estimated seconds so far.

Measured on two quiet cores at 64 px, batch 32, images/s: ResNet-18 260, ViT-T 245, MedMamba-T 102, VMamba-T 56, Swin-T
56, which is 25 to 60 GMAC/s a core for ResNet-18 and 20 to 35 for the others. On an H100 in bf16 at 224 px, batch 128,
a step takes 57 ms (Swin-T) to 71 ms (MedMamba-T), and at 64 px 10 ms (ResNet-18) to 80 ms (MedMamba-T).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from bench import registry
from bench.data.files import bundled_note
from bench.plan.memory import BYTES_A_WEIGHT, device_bytes, memory_bytes
from bench.plan.plan import Plan
from bench.record.cells import AccuracyCell, Cell, EfficiencyCell, TransferCell, features_key, trials_of
from bench.sweep import recipes
from bench.sweep.config import SMALLEST

# Multiply-adds per second (10^9) usually reached in training: per CPU core, and on a data-centre GPU in bf16.
CPU_GMACS_PER_CORE = {"resnet": 50.0}
CPU_GMACS_PER_CORE_ELSE = 30.0
GPU_GMACS = 20_000.0
GPU_STEP_S = 0.04  # the least time of a training step there: Python launches its kernels one by one
CPU_UPDATE_S = 3e-9  # of AdamW, for each weight and step
DEFAULT_MACS_G_224 = 4.0  # a plug-in that publishes no figure
DEFAULT_PARAMS = 25_000_000
HEAD_BYTES = 1 << 16
HEAD_S = 0.1  # of fitting a head on frozen features and writing its Record
OVERHEAD_S = 2.5  # a process, building the network, loading data, computing metrics
LONG_S = 2 * 3600.0  # who starts a longer sweep is asked first
GPU = "cuda:0"

Counts = tuple[int, int, int]
UNKNOWN: Counts = (1000, 100, 1000)  # of a set that publishes no number and whose files are not there


def estimate_s(cell: Cell, threads: int, device: str) -> float:
    """Return the seconds a Cell will take, roughly."""
    if isinstance(cell, AccuracyCell) and (trials := trials_of(cell)):
        if cell.seed == trials[0].seed:  # the best trial is its training
            return OVERHEAD_S
        cell = replace(trials[0], seed=cell.seed)
    info = registry.model_info(registry.parse_model(cell.model).name)
    at_224 = info.counted_macs_g_224 or info.macs_g_224 or DEFAULT_MACS_G_224
    macs_g: float = at_224 * (cell.resolution / 224) ** 2
    on_gpu = device.startswith("cuda")
    per_core = CPU_GMACS_PER_CORE.get(info.family, CPU_GMACS_PER_CORE_ELSE)
    rate = GPU_GMACS if on_gpu else per_core * threads
    if isinstance(cell, EfficiencyCell):
        train = cell.mode == "train"
        forward_s = macs_g * max(1, cell.batch) / rate
        timed_s = 2 * (1 if train else 2) * cell.budget_s
        return cell.rounds * (OVERHEAD_S + max(timed_s, (18 if train else 6) * forward_s))
    n_train, n_val, n_test = _counts(cell.dataset)
    if not isinstance(cell, AccuracyCell):
        return OVERHEAD_S + macs_g * n_test / rate
    if cell.track == "frozen":  # each image once
        return OVERHEAD_S + HEAD_S + macs_g * (n_train + n_val + n_test) / rate
    n_train, n_val = _labelled(cell, n_train), _labelled(cell, n_val)
    trained, evaluated = recipes.estimate_steps(n_train, dict(cell.recipe), n_val=n_val, n_test=n_test)
    steps = trained / int(cell.recipe["batch_size"])
    compute_s = 3 * macs_g * trained / rate
    if on_gpu:
        compute_s = max(compute_s, steps * GPU_STEP_S)
    else:
        compute_s += steps * CPU_UPDATE_S * (info.params or DEFAULT_PARAMS)
    return OVERHEAD_S + compute_s + macs_g * evaluated / rate


def _labelled(cell: AccuracyCell, n: int) -> int:
    """How many of a split's images keep their labels."""
    if cell.shots is not None:
        return min(n, max(2, cell.shots * len(registry.dataset_info(cell.dataset).classes)))
    return max(2, round(n * cell.label_fraction))


def _counts(dataset: str) -> Counts:
    """Images to train on, validate with and test on; of a variant that leaves them open, those of the whole set."""
    base = dataset.partition("[")[0]
    infos = [registry.dataset_info(dataset), *([registry.datasets[base]] if base in registry.datasets else [])]
    for info in infos:
        if info.n_train is not None and info.n_val is not None and info.n_test is not None:
            return info.n_train, info.n_val, info.n_test
    return UNKNOWN


@dataclass(frozen=True, slots=True)
class Cost:
    """What is left of a sweep to run, roughly.

    Attributes:
        seconds: one after the other on this machine.
        disk: bytes of decoded images, predictions and kept weights.
        memory: bytes that the largest Cell takes at once (:mod:`bench.plan.memory`), and of the device, 0 if unknown.
        too_large: what does not fit into the device: a line per model and resolution.
        cheaper: flags that shorten it -> seconds with them.
    """

    cells: int
    seconds: float
    disk: int
    memory: tuple[int, int]
    too_large: tuple[str, ...]
    cheaper: dict[str, float]

    def __str__(self) -> str:
        """One line: time, disk and memory."""
        parts = [f"roughly {long_time(self.seconds)} (within a factor of three)", f"disk {size(self.disk)}"]
        most, there = self.memory
        if most:
            parts.append(f"memory about {size(most)}{f' of {size(there)}' if there else ''}")
        return ", ".join(parts)


def cost_of(plan: Plan, done: Collection[str], keep_weights: bool = False) -> Cost:
    """Add up what a plan will cost; Cells in ``done`` and those that cannot run cost nothing."""
    left = [cell for key, cell in plan.cells.items() if key not in done and key not in plan.unsupported]

    def total(cells: Iterable[Cell], device: str = plan.device) -> float:
        seconds, seen = 0.0, set()
        for cell in cells:
            if isinstance(cell, AccuracyCell) and cell.track == "frozen":
                if (features := features_key(cell)) in seen:
                    seconds += HEAD_S
                    continue
                seen.add(features)
            seconds += estimate_s(cell, plan.threads, device)
        return seconds

    trainings = [cell for cell in left if isinstance(cell, AccuracyCell) and cell.track != "frozen"]
    seconds = total(left)
    cheaper: dict[str, float] = {}
    if seconds > LONG_S:
        few = [cell for cell in left if cell.model in SMALLEST] or left
        cheaper = {
            "--resolutions 64": total(_cheap(cell, 64, 0) for cell in left),
            "--epochs 10": total(_cheap(cell, 0, 10) for cell in left),
            f"--models {','.join(SMALLEST)}": total(few),
        }
        cheaper = {flags: less for flags, less in cheaper.items() if less < 0.9 * seconds}
        if len(cheaper) > 1:
            cheaper["all of these"] = total(_cheap(cell, 64, 10) for cell in few)
        if plan.device == "cpu":
            cheaper["a data-centre GPU"] = total(left, GPU)
    there = device_bytes(plan.device) or 0 if left else 0
    needed = [(cell, memory_bytes(cell)) for cell in left]
    most = max((bytes_ for _, bytes_ in needed), default=0)
    large = tuple(dict.fromkeys(_too_large(cell, n, there) for cell, n in needed if there and n > there))
    return Cost(len(left), seconds, _disk(trainings, keep_weights), (most, there), large, cheaper)


def bundled_notes(plan: Plan) -> list[str]:
    """One line for each dataset of a plan that is read from inside the package."""
    wanted = dict.fromkeys((cell.dataset, cell.size) for cell in plan.cells.values() if isinstance(cell, AccuracyCell))
    notes = (bundled_note(registry.dataset_info(name), side, plan.data_root) for name, side in wanted)
    return [note for note in notes if note]


def _cheap(cell: Cell, resolution: int, epochs: int) -> Cell:
    """The Cell at a lower resolution or with fewer epochs, where it has more."""
    if resolution and cell.resolution > resolution and not isinstance(cell, TransferCell):
        cell = replace(cell, resolution=resolution)
    if epochs and isinstance(cell, AccuracyCell) and cell.recipe.get("epochs", 0) > epochs:
        cell = replace(cell, recipe={**cell.recipe, "epochs": epochs})
    return cell


def _params(model: str) -> int:
    return registry.model_info(registry.parse_model(model).name).params or DEFAULT_PARAMS


def weights_bytes(cell: AccuracyCell) -> int:
    """Of the file with the weights of a training, roughly; of a frozen network only its head is kept."""
    return HEAD_BYTES if cell.track == "frozen" else 4 * _params(cell.model)


def _too_large(cell: Cell, needed: int, there: int) -> str:
    halves = isinstance(cell, AccuracyCell) and cell.track != "frozen"
    then = "; gradients will be accumulated over smaller batches" if halves else ""
    return f"{cell.model} at {cell.resolution} px needs about {size(needed)} of {size(there)}{then}"


def _disk(trainings: Collection[AccuracyCell], keep_weights: bool) -> int:
    """Decoded images once a dataset and side, scores (float64) and histories of each training, one checkpoint."""
    total = 0
    for dataset, side in {(cell.dataset, cell.size) for cell in trainings}:
        total += sum(_counts(dataset)) * side**2 * registry.dataset_info(dataset).channels
    for cell in trainings:
        scored = sum(_counts(cell.dataset)[1:])
        total += scored * 8 * (len(registry.dataset_info(cell.dataset).classes) + 1) + 20_000
        total += weights_bytes(cell) if keep_weights else 0
    return total + max((BYTES_A_WEIGHT * _params(cell.model) for cell in trainings), default=0)


def long_time(seconds: float) -> str:
    """Format seconds as seconds, minutes, hours, days or years, whichever is read most easily."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "hours"), (63e6, 86_400, "days")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 31_557_600:.1f} years"


def size(count: int) -> str:
    """Format bytes as MiB or GiB."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
