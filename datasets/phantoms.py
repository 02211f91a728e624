"""Phantoms: generated chest radiographs that isolate what an architecture can see.

``phantom_local``, ``phantom_global`` and ``phantom_mixed`` show *the same images* and ask three questions:

* ``local``: is the lungs' texture *granular* (no preferred direction) or *reticular* (threads whose direction turns
  slowly from place to place)? Both are Gaussian noise of one spatial frequency and variance, so a pixel's value, the
  histogram and the power per frequency say nothing; a window of two or three wavelengths says all.
* ``global``: do the two nodules, one in each lung, lie *level* or is one *offset* by half the lungs' height? Either
  height alone is uniform over the same range in both classes, so every sum over places (a pixel, a histogram, a bag
  of local descriptors, anything linear) has one distribution in both; only the relation tells.
* ``mixed``: the pair of both answers, four classes. Seeing only one cue is right half of the time.

``phantom_small`` hides a faint disc of known diameter and contrast (:func:`describe`) in one lung, or none.

Nuisances in all: pose, size, rib phase, heart, exposure, gamma, shading, noise. Lengths are fractions of the image's
half-width, so a scene is the same at every resolution; only the pixel noise is drawn anew. Image ``i`` of a split
does not depend on how many are made or on threads, nor its draws on numpy's version (raw Philox words, no numpy
distributions); a pixel may still round otherwise where another numpy or processor computes sines and exponentials.
Mirror images are as likely as the images themselves.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.registry import DatasetInfo, RegistryError, Split

VERSION = 1  # of the images: raise it with every change that alters a pixel
KINDS = ("phantom_local", "phantom_global", "phantom_mixed", "phantom_small")
SMALLEST = 28  # pixels; below, the texture blurs into the pixel grid

Array = np.ndarray

_SCALARS = 32  # uniform numbers an image's scene may use
_SECTORS = 6  # directions of the texture, 30 degrees each
_RING = (6.5, 8.5)  # cycles an image: wavelengths of 3.3 to 4.3 pixels at 28
_RANGE = 0.45  # nodules lie at heights of -0.45 to 0.45; 'offset' is half of that range
_PIXELS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How a scene is imaged; another one makes a shifted twin of a phantom.

    Attributes:
        noise: least and largest standard deviation of the pixel noise (1 is white).
        contrast: least and largest factor on the contrast.
        scale: least and largest size of the body.
    """

    noise: tuple[float, float] = (0.01, 0.03)
    contrast: tuple[float, float] = (0.85, 1.15)
    scale: tuple[float, float] = (0.94, 1.06)


STANDARD = Acquisition()
SHIFTED = Acquisition(noise=(0.04, 0.07), contrast=(0.55, 0.75), scale=(0.82, 0.92))


class Phantom:
    """Adapter of one phantom; see :class:`bench.registry.Adapter`. Split sizes are those of its info."""

    acquisition = STANDARD

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        base = info.name.partition("[")[0]
        self.kind = next((kind for kind in KINDS if f"{base}_".startswith(f"{kind}_")), "")
        if not self.kind:
            raise ValueError(f"{info.name!r} names no phantom; names begin with one of {', '.join(KINDS)}")

    def files(self, size: int) -> tuple[()]:
        """Phantoms need no file."""
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        """Generator version and what decides the content."""
        counts = "/".join(str(count) for count in self._counts().values())
        return f"phantom-{VERSION}-{self.kind}-{size}-{counts}-{self.acquisition}"

    def load(self, size: int, root: Path | None) -> dict[str, Split]:
        """Generate the three splits."""
        return {
            split: generate(self.kind, split, count, size, self.acquisition) for split, count in self._counts().items()
        }

    def lesion_diameters(self, split: str) -> Array:
        """Of each image of a split, as of :func:`describe`, (N,); empty for phantoms that hide none."""
        found = describe(self.kind, split, self._counts()[split])
        return found.get("lesion_diameter", np.zeros(0))

    def _counts(self) -> dict[str, int]:
        return {"train": self.info.n_train or 0, "val": self.info.n_val or 0, "test": self.info.n_test or 0}


def variant(info: DatasetInfo, options: Mapping[str, str]) -> DatasetInfo:
    """A phantom with other numbers of images: ``[train=N]``, and a quarter of it for val, as many for test.

    Raises:
        RegistryError: another option, or no number from 40 to 100,000.
    """
    text = options.get("train", "")
    if set(options) != {"train"} or not text.isdecimal() or not 40 <= int(text) <= 100_000:
        said = ", ".join(f"{key}={value}" for key, value in options.items())
        raise RegistryError(f"dataset {info.name!r}: {said}: write train=N, images to train on, 40 to 100000")
    count = int(text)
    return replace(info, name=f"{info.name}[train={count}]", n_train=count, n_val=count // 4, n_test=count)


class ShiftedPhantom(Phantom):
    """The same scenes from another scanner: noisier, flatter, smaller. No value overlaps with the phantom's own.

    For transfer: image ``i`` of a split shows what image ``i`` of the phantom's split shows.
    """

    acquisition = SHIFTED


def generate(kind: str, split: str, count: int, size: int, acquisition: Acquisition = STANDARD) -> Split:
    """Make the first ``count`` images of a split.

    Args:
        kind: one of :data:`KINDS`.
        split: any word; splits of other names are independent.
        count: number of images.
        size: side in pixels, at least 28.
        acquisition: exposure and noise.

    Returns:
        images uint8 (count, size, size, 1) and labels int64 (count,).
    """
    if size < SMALLEST:
        raise ValueError(f"{kind} at {size} pixels: its texture needs {SMALLEST} or more")
    images = np.empty((count, size, size, 1), np.uint8)
    step = max(1, _PIXELS_AT_ONCE // size**2)
    for start in range(0, count, step):
        stop = min(start + step, count)
        images[start:stop, :, :, 0] = _render(_Scene.of(kind, split, start, stop, acquisition), size)
    return Split(images, describe(kind, split, count)["label"].astype(np.int64))


def describe(kind: str, split: str, count: int) -> dict[str, Array]:
    """Tell what the first ``count`` images of a split contain.

    Returns:
        ``label`` (int), and one array each of ``count`` numbers: for ``phantom_small`` ``lesion_diameter``
        (fraction of the image's side, 0 if there is none), ``lesion_contrast`` (1 is black to white), ``lesion_x``
        and ``lesion_y``; otherwise ``texture`` (1 reticular), ``relation`` (1 offset), and ``left_x``, ``left_y``,
        ``right_x``, ``right_y`` of the nodules. Positions are in the body's frame, -1 to 1, y down.
    """
    scene = _Scene.of(kind, split, 0, count, STANDARD)
    label = scene.label(kind)
    if kind == "phantom_small":
        (lesion,) = scene.discs
        return {
            "label": label,
            "lesion_diameter": lesion.radius,  # a radius in half-widths is a diameter in widths
            "lesion_contrast": lesion.contrast,
            "lesion_x": lesion.x,
            "lesion_y": lesion.y,
        }
    left, right = scene.discs
    places = {"left_x": left.x, "left_y": left.y, "right_x": right.x, "right_y": right.y}
    return {"label": label, "texture": scene.texture, "relation": scene.relation, **places}


# --- randomness ------------------------------------------------------------------------------------------------


def _words(stream: str, start: int, stop: int, each: int) -> Array:
    """Random 64-bit words of images ``start`` to ``stop``, ``each`` (a multiple of 4) an image: (n, each)."""
    key = np.frombuffer(hashlib.sha256(f"medbench phantom {VERSION} {stream}".encode()).digest()[:16], "<u8")
    philox = np.random.Philox(key=key, counter=start * each // 4)  # type: ignore[arg-type]  # four words a counter
    return philox.random_raw((stop - start) * each).reshape(stop - start, each)


def _uniform(words: Array) -> Array:
    return (words >> np.uint64(11)) * 2.0**-53


def _bell(words: Array) -> Array:
    """Near-normal numbers of unit variance: sums of four 16-bit uniforms, exact on every machine."""
    quarters = words.view(np.uint16).reshape(*words.shape, 4)
    total = quarters.sum(axis=-1, dtype=np.int64)
    return (total - 2 * 65535) / (65536 * np.sqrt(4 / 12))


class _Draws:
    """Hands out an image's uniform numbers one after another, each of shape (n,)."""

    def __init__(self, stream: str, start: int, stop: int) -> None:
        self._columns = iter(_uniform(_words(stream, start, stop, _SCALARS)).T)

    def __call__(self, low: float, high: float) -> Array:
        return low + (high - low) * next(self._columns)

    def coin(self) -> Array:
        return (next(self._columns) < 0.5).astype(np.int64)


# --- scenes ----------------------------------------------------------------------------------------------------


def _folded(height: Array) -> Array:
    """Mirror heights beyond an end of the range back into it: what was uniform stays uniform."""
    below = np.where(height > _RANGE, 2 * _RANGE - height, height)
    return np.where(below < -_RANGE, -2 * _RANGE - below, below)


class _Disc(NamedTuple):
    """A soft disc in every image; all arrays (n,)."""

    x: Array
    y: Array
    radius: Array
    contrast: Array


@dataclass(slots=True)
class _Scene:
    """What images ``start`` to ``stop`` show and how they are taken; arrays of shape (n,)."""

    stream: str
    start: int
    stop: int
    texture: Array
    relation: Array
    pose: dict[str, Array]
    anatomy: dict[str, Array]
    exposure: dict[str, Array]
    weave: dict[str, Array]
    discs: tuple[_Disc, ...]

    @classmethod
    def of(cls, kind: str, split: str, start: int, stop: int, acquisition: Acquisition) -> _Scene:
        """Draw the scenes. The order of the draws is part of the version."""
        if kind not in KINDS:
            raise ValueError(f"unknown phantom {kind!r}; there are {', '.join(KINDS)}")
        small = kind == "phantom_small"
        stream = f"{'small' if small else 'questions'} {split}"  # three phantoms share their images
        draw = _Draws(stream, start, stop)
        texture, relation = draw.coin(), draw.coin()
        pose = {"x": draw(-0.05, 0.05), "y": draw(-0.05, 0.05), "tilt": draw(-0.06, 0.06)}
        pose["scale"] = draw(*acquisition.scale)
        anatomy = {"rib_phase": draw(0, 1), "rib_pitch": draw(2.9, 3.5), "heart_x": draw(-0.14, 0.14)}
        anatomy["heart_size"] = draw(0.85, 1.1)
        exposure = {"slope_x": draw(-0.05, 0.05), "slope_y": draw(-0.05, 0.05), "offset": draw(-0.05, 0.05)}
        exposure |= {"contrast": draw(*acquisition.contrast), "gamma": draw(0.85, 1.2)}
        exposure["noise"] = draw(*acquisition.noise)
        weave = {"angle": draw(0, 2 * np.pi), "turn_x": draw(-2, 2), "turn_y": draw(-2, 2)}
        amplitude = draw(0.085, 0.095)
        weave["amplitude"] = np.full_like(amplitude, 0.03) if small else amplitude
        nodules, lesion = _nodules(draw, relation), _lesion(draw, relation)
        return cls(
            stream=stream,
            start=start,
            stop=stop,
            texture=np.zeros_like(texture) if small else texture,
            relation=relation,
            pose=pose,
            anatomy=anatomy,
            exposure=exposure,
            weave=weave,
            discs=(lesion,) if small else nodules,
        )

    def label(self, kind: str) -> Array:
        """Answer the question that ``kind`` asks; in ``phantom_small`` ``relation`` is whether there is a lesion."""
        answers = {"phantom_local": self.texture, "phantom_mixed": 2 * self.texture + self.relation}
        return answers.get(kind, self.relation)


def _nodules(draw: _Draws, offset: Array) -> tuple[_Disc, _Disc]:
    left_y = draw(-_RANGE, _RANGE)
    across = left_y + _RANGE * offset  # half of the range further, round its end
    right_y = _folded(np.where(across > _RANGE, across - 2 * _RANGE, across) + draw(-0.05, 0.05))
    left_x, right_x = draw(-0.5, -0.36), draw(0.36, 0.5)
    radius, contrast = draw(0.105, 0.125), draw(0.36, 0.44)
    return _Disc(left_x, left_y, radius, contrast), _Disc(right_x, right_y, radius, contrast)


def _lesion(draw: _Draws, present: Array) -> _Disc:
    radius = np.exp(draw(np.log(0.04), np.log(0.2)))
    contrast, side = draw(0.06, 0.24), draw.coin()
    x = (2 * side - 1) * draw(0.34, 0.52)
    return _Disc(x, draw(-0.42, 0.42), radius * present, contrast * present)


# --- pictures: every function takes and gives arrays of shape (n, size, size) ----------------------------------


def _wide(numbers: Array) -> Array:
    return numbers[:, None, None]


def _step(distance: Array, softness: float) -> Array:
    """Go smoothly from 0 (``distance`` well below zero) to 1."""
    return 0.5 + 0.5 * np.tanh(distance / (2 * softness))


def _render(scene: _Scene, size: int) -> Array:
    """Draw scenes as uint8 (n, size, size)."""
    u, v = _body_frame(scene.pose, size)
    image, lungs = _chest(scene.anatomy, u, v)
    image += lungs * _wide(scene.weave["amplitude"]) * _texture(scene, size)
    for disc in scene.discs:
        image += _wide(disc.contrast) * _shape(disc, u, v)
    return _expose(scene, image, u, v)


def _body_frame(pose: dict[str, Array], size: int) -> tuple[Array, Array]:
    """Pixel centres in the body's frame: x and y from -1 to 1 across the image, y down."""
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    x = centres[None, None, :] - _wide(pose["x"])
    y = centres[None, :, None] - _wide(pose["y"])
    cosine = _wide(np.cos(pose["tilt"]) / pose["scale"])
    sine = _wide(np.sin(pose["tilt"]) / pose["scale"])
    return cosine * x + sine * y, cosine * y - sine * x


def _chest(anatomy: dict[str, Array], u: Array, v: Array) -> tuple[Array, Array]:
    """A stylised frontal chest: the image (air 0, bone 1) and the lungs' share of each pixel."""
    side = np.abs(u)
    torso = _step(0.9 - 0.5 * _step(-0.78 - v, 0.04) - side, 0.02)
    lung_width = 0.32 + 0.06 * v
    reach = ((side - 0.43) / lung_width) ** 2 + ((v + 0.02) / 0.7) ** 2
    lungs = _step(1 - reach, 0.06)
    heart = ((u - _wide(anatomy["heart_x"])) ** 2 + (v - 0.36) ** 2 * 1.2) / _wide(0.25 * anatomy["heart_size"]) ** 2
    heart = _step(1 - heart, 0.08)
    lungs *= 1 - 0.85 * heart
    spine = np.exp(-((u / 0.1) ** 2))
    bow = v + 0.9 * (side - 0.35) ** 2 - 0.25 * side  # ribs rise towards the spine and fall towards the flank
    wave = np.cos(2 * np.pi * (_wide(anatomy["rib_pitch"]) * bow + _wide(anatomy["rib_phase"])))
    ribs = np.maximum(wave, 0) ** 2 * _step(0.82 - side, 0.03) * _step(side - 0.1, 0.03) * _step(0.75 - np.abs(v), 0.04)
    collar = np.exp(-(((v + 0.7 - 0.2 * (side - 0.35)) / 0.035) ** 2)) * _step(0.66 - side, 0.03)
    image = torso * (0.58 - 0.36 * lungs + 0.14 * spine + 0.09 * ribs + 0.1 * collar + 0.06 * heart)
    return image, lungs


def _shape(disc: _Disc, u: Array, v: Array) -> Array:
    """A disc of height 1 with a soft edge; where its radius is 0, nothing."""
    distance = np.sqrt((u - _wide(disc.x)) ** 2 + (v - _wide(disc.y)) ** 2)
    size = _wide(np.maximum(disc.radius, 1e-9))
    return _step(1 - distance / size, 0.12)


@functools.cache
def _ring() -> tuple[Array, Array, Array, Array]:
    """The texture's frequencies in the half-plane that irfft2 reads.

    Returns:
        y, x: cycles an image; sector: index of the direction; share: factor that gives each sector unit variance.
    """
    y, x = np.mgrid[-9:10, 0:10]
    radius = np.hypot(x, y)
    chosen = (radius >= _RING[0]) & (radius <= _RING[1]) & ((x > 0) | (y > 0))
    y, x = y[chosen], x[chosen]
    sector = np.floor(np.arctan2(y, x) / np.pi * _SECTORS + 0.5).astype(int) % _SECTORS
    # A frequency off the axis x = 0 stands for its mirror too and has variance 4; on the axis irfft2 takes one side.
    power = np.bincount(sector, np.where(x > 0, 4.0, 1.0), minlength=_SECTORS)
    return y, x, sector, 1 / np.sqrt(power[sector])


def _texture(scene: _Scene, size: int) -> Array:
    """Gaussian noise of unit variance on the ring: all directions together, or directions chosen place by place."""
    y, x, sector, share = _ring()
    words = _words(f"{scene.stream} texture", scene.start, scene.stop, 2 * len(x) + -2 * len(x) % 4)
    normal = _bell(words[:, : 2 * len(x)])
    # Pixel centres lie half a pixel off the grid of the transform; the phase makes the scene one at every size.
    modes = (normal[:, ::2] + 1j * normal[:, 1::2]) * (np.exp(1j * np.pi * (x + y) / size) * share * size**2)
    texture = np.empty((len(words), size, size))
    granular, reticular = np.flatnonzero(scene.texture == 0), np.flatnonzero(scene.texture == 1)
    texture[granular] = _waves(modes[granular], y, x, size) / np.sqrt(_SECTORS)
    woven = np.zeros((len(reticular), size, size))
    for index, weight in enumerate(_directions({name: part[reticular] for name, part in scene.weave.items()}, size)):
        mine = sector == index
        woven += weight * _waves(modes[np.ix_(reticular, mine)], y[mine], x[mine], size)
    texture[reticular] = woven
    return texture


def _waves(modes: Array, y: Array, x: Array, size: int) -> Array:
    spectrum = np.zeros((len(modes), size, size // 2 + 1), np.complex128)
    spectrum[:, y, x] = modes
    return np.fft.irfft2(spectrum, s=(size, size))


def _directions(weave: dict[str, Array], size: int) -> list[Array]:
    """Weight of each sector at each pixel; squares sum to 1, so the variance is the same everywhere."""
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    along, down = np.exp(1j * weave["turn_x"][:, None] * centres), np.exp(1j * weave["turn_y"][:, None] * centres)
    twice = _wide(np.exp(1j * weave["angle"])) * along[:, None, :] * down[:, :, None]  # of twice the angle
    angles = 2 * np.pi * np.arange(_SECTORS) / _SECTORS
    threads = [((1 + np.cos(a) * twice.real + np.sin(a) * twice.imag) / 2) ** 2 for a in angles]
    threads = [thread * thread for thread in threads]
    norm = 1 / np.sqrt(sum(thread * thread for thread in threads))
    return [thread * norm for thread in threads]


def _expose(scene: _Scene, image: Array, u: Array, v: Array) -> Array:
    """Shading, contrast, gamma, noise, and 8 bits."""
    taken = scene.exposure
    image = image + _wide(taken["slope_x"]) * u + _wide(taken["slope_y"]) * v + _wide(taken["offset"])
    image = np.clip(0.42 + _wide(taken["contrast"]) * (image - 0.4), 0, 1) ** _wide(taken["gamma"])
    size = image.shape[-1]
    words = _words(f"{scene.stream} noise {size}", scene.start, scene.stop, size**2 + -(size**2) % 4)
    image += _wide(taken["noise"]) * _bell(words[:, : size**2]).reshape(image.shape)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
