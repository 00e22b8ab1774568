"""The spatially variant test noise of VDN, cases 1 to 3, bit by bit as its authors generate it.

Used by `pipeline.evaluation.noise`. Yue et al., "Variational Denoising Network", arXiv 1908.11314: one legacy numpy
generator with seed 10000 draws the third map and then the noise of all images: LIVE1, Set5, CBSD68; in each the cases
1, 2, 3; in each the images in the order of their names. So the noise of an image depends on how many numbers were drawn
for the images before it, and this module knows their sizes.

Two quirks are kept: images are cropped to multiples of 16, and inside a case the noise level map of an image is resized
from that of the image before it, not from the map of 256x256.
"""

import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

State = dict[str, Any] | tuple[Any, ...]  # of a legacy numpy generator

CASES = (1, 2, 3)
MAP_SIZE = 256
_SEED = 10000
_LOWEST, _SPAN = 10 / 255, 65 / 255
_CROP = 16
_TILES, _TILE = 8, 32  # the third map is a mean of 64 Gaussians, one per tile of 32x32

# Images of the three sets in their order, after cropping: number of pixels, by file stem up to the first underscore.
_LIVE1 = {
    "bikes": 768 * 512, "building2": 640 * 512, "buildings": 768 * 512, "caps": 768 * 512, "carnivaldolls": 608 * 480,
    "cemetry": 624 * 480, "churchandcapitol": 624 * 496, "coinsinfountain": 640 * 512, "dancers": 608 * 448,
    "flowersonih35": 640 * 512, "house": 768 * 512, "lighthouse2": 768 * 512, "lighthouse3": 480 * 720,
    "manfishing": 624 * 432, "monarch": 768 * 512, "ocean": 768 * 512, "paintedhouse": 768 * 512, "parrots": 768 * 512,
    "plane": 768 * 512, "rapids": 768 * 512, "sailing1": 768 * 512, "sailing2": 480 * 720, "sailing3": 480 * 720,
    "sailing4": 768 * 512, "statue": 480 * 720, "stream": 768 * 512, "studentsculpture": 624 * 496,
    "woman": 480 * 720, "womanhat": 480 * 720,
}  # fmt: skip
_SET5 = {"baby": 512 * 512, "bird": 288 * 288, "butterfly": 256 * 256, "head": 272 * 272, "woman": 224 * 336}
_NUM_CBSD68, _CBSD68_SIDES = 68, [320, 480]  # cropped, in pixels
_PIXELS = {
    "LIVE1": tuple(_LIVE1.values()),
    "Set5": tuple(_SET5.values()),
    "CBSD68": (math.prod(_CBSD68_SIDES),) * _NUM_CBSD68,
}


def recognise(names: Iterable[str], size: tuple[int, int]) -> str | None:
    """Return which of LIVE1, Set5 and CBSD68 has images of these file stems, or None.

    CBSD68 is recognised as 68 stems of digits whose first image has `size` 321 x 481 or 481 x 321, or that cropped.
    """
    stems = sorted(name.split("_")[0] for name in names)
    if stems == sorted(_LIVE1):
        return "LIVE1"
    if stems == sorted(_SET5):
        return "Set5"
    sides = sorted(side - side % _CROP for side in size)
    if len(stems) == _NUM_CBSD68 and sides == _CBSD68_SIDES and all(re.fullmatch(r"\d+", stem) for stem in stems):
        return "CBSD68"
    return None


def crop(image: np.ndarray) -> np.ndarray:
    """Cut (H, W, ...) from the top left to multiples of 16."""
    height, width = (side - side % _CROP for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def sigma_map(case: int) -> np.ndarray:
    """Return the noise level map of `case`: (256, 256) sigma on the [0, 1] scale, from 10/255 to 75/255."""
    raw = raw_map(case)
    return _LOWEST + (raw - raw.min()) / (raw.max() - raw.min()) * _SPAN


def raw_map(case: int) -> np.ndarray:
    """Return the map of `case` before it is rescaled: (256, 256).

    Raises:
        ValueError: `case` is not 1, 2 or 3.
    """
    if case == 1:
        return _peaks()
    if case == 2:
        x, y = np.linspace(1, 10, MAP_SIZE), np.linspace(1, 20, MAP_SIZE)
        return np.sin(x)[None, :] + np.cos(y)[:, None]
    if case == 3:
        return _start()[0]
    raise ValueError(f"`case` must be 1, 2 or 3, got {case}")


def resize_map(noise_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map bilinearly, with pixel centres as OpenCV places them and no antialiasing."""
    if noise_map.shape == (height, width):
        return noise_map
    tensor = torch.from_numpy(noise_map)[None, None]
    return functional.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def case_noise(dataset: str, case: int, sizes: Iterable[tuple[str, int, int]]) -> Iterator[np.ndarray]:
    """Draw the noise of one set and case, image by image.

    Args:
        dataset: LIVE1, Set5 or CBSD68.
        case: 1, 2 or 3.
        sizes: name, height and width of every cropped image, in the order of the names.

    Yields:
        (H, W, 3) float32 on the [0, 1] scale.

    Raises:
        ValueError: an image has another number of pixels than the set's.
    """
    generator = np.random.RandomState()
    generator.set_state(_state_before(dataset, case))
    current = sigma_map(case)
    for index, (name, height, width) in enumerate(sizes):
        expected = _PIXELS[dataset][index]
        if height * width != expected:
            raise ValueError(
                f"image {name} of {dataset} must have {expected} pixels after cropping to multiples of {_CROP}, "
                f"got {width}x{height}; noise `niid:{case}:clean` takes images of any size"
            )
        current = resize_map(current, height, width)
        noise = generator.randn(height, width, 3) * current[..., None].astype(np.float32)
        yield noise.astype(np.float32)


@cache
def _state_before(dataset: str, case: int) -> State:
    """Return the generator's state when the first image of `dataset` and `case` is due."""
    order = [(name, number) for name in _PIXELS for number in CASES]
    index = order.index((dataset, case))
    if index == 0:
        return _start()[1]
    name, number = order[index - 1]
    generator = np.random.RandomState()
    generator.set_state(_state_before(name, number))
    for num_pixels in _PIXELS[name]:
        generator.randn(3 * num_pixels)
    return generator.get_state()


@cache
def _start() -> tuple[np.ndarray, State]:
    """Return the third map, and the generator's state after drawing it."""
    generator = np.random.RandomState(_SEED)
    tiles = np.arange(_TILES) * _TILE
    columns = generator.uniform(0, _TILE, (_TILES, _TILES)) + tiles[None, :]
    rows = generator.uniform(0, _TILE, (_TILES, _TILES)) + tiles[:, None]
    stds = generator.uniform(_TILE / 2, _TILE, _TILES * _TILES)
    state = generator.get_state()
    centres = zip(columns.ravel().astype(np.float32), rows.ravel().astype(np.float32), strict=True)
    grid = np.arange(MAP_SIZE, dtype=np.float32)
    total = np.zeros((MAP_SIZE, MAP_SIZE), np.float32)
    for (column, row), std in zip(centres, stds.astype(np.float32), strict=True):
        distances = (grid[None, :] - column) ** 2 + (grid[:, None] - row) ** 2
        total += np.exp(-distances / (2 * std**2)) / (2 * np.float32(np.pi) * std**2)
    return total / (_TILES * _TILES), state


def _peaks() -> np.ndarray:
    """MATLAB's `peaks` on [-3, 3] x [-3, 3]."""
    x = np.linspace(-3, 3, MAP_SIZE)[None, :]
    y = np.linspace(-3, 3, MAP_SIZE)[:, None]
    return (
        3 * (1 - x) ** 2 * np.exp(-(x**2) - (y + 1) ** 2)
        - 10 * (x / 5 - x**3 - y**5) * np.exp(-(x**2) - y**2)
        - np.exp(-((x + 1) ** 2) - y**2) / 3
    )
