"""Test noise by name, over a set of images. The same name gives the same noise, image by image, wherever it runs.

Called by `pipeline.evaluation.command` and by the experiments. Names:

    awgn:25             white Gaussian noise of sigma 25 grey levels; generator seeded with 0 for every image
    niid:1 .. niid:3    VDN's spatially variant noise: bit by bit its authors' on LIVE1, Set5 and CBSD68 (images are
                        cropped to multiples of 16), as `niid:1:clean` on any other set
    niid:1:clean        the same noise levels without the protocol's quirks: the map of 256x256 is resized for every
                        image, nothing is cropped, the generator is seeded with 0 for every image
    poisson:4:2         Poisson-Gaussian noise as in raw images: variance 4 x + 2 x 2 at grey level x, seeded with 0
    pairs               the noisy images of the set
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.datasets import Dataset
from pipeline.data.images import white_level
from pipeline.data.noise import add_test_awgn
from pipeline.evaluation.names import NAMES_HELP
from pipeline.evaluation.vdn_protocol import CASES, case_noise, crop, recognise, resize_map, sigma_map

PAIRS = "pairs"


@dataclass(frozen=True, kw_only=True)
class NoisySample:
    """One test image.

    Attributes:
        name: of the image.
        clean: (H, W, 3) uint8 or uint16.
        noisy: (H, W, 3) float32 on the [0, 1] scale, not clipped.
    """

    name: str
    clean: np.ndarray
    noisy: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TestNoise:
    """Noise of a test protocol.

    Attributes:
        name: as the user gave it.
        sigma: on the [0, 1] scale, where every pixel has the same and it is known.
        add: makes (H, W, 3) float32 noisy from (H, W, 3) float64 clean, both on the [0, 1] scale; None for pairs.
        case: of VDN's protocol, followed to the bit on its own three sets.
    """

    __test__ = False  # not a class of tests

    name: str
    sigma: float | None = None
    add: Callable[[np.ndarray], np.ndarray] | None = None
    case: int | None = None

    def check(self, dataset: Dataset) -> None:
        """Raise a ValueError if this noise cannot be had for `dataset`."""
        if self.add is None and not dataset.is_paired:
            raise ValueError(f"noise `pairs` needs noisy images beside the clean ones; {dataset.name} has none")

    def samples(self, dataset: Dataset) -> Iterator[NoisySample]:
        """Go over the images of `dataset` in its order."""
        self.check(dataset)
        known = recognise(dataset.names, dataset.load(dataset.names[0]).clean.shape[:2]) if self.case else None
        if known is not None:
            yield from self._protocol_samples(dataset, known)
            return
        for name in dataset.names:
            sample = dataset.load(name)
            if self.add is not None:
                noisy = self.add(sample.clean / white_level(sample.clean))
            else:
                assert sample.noisy is not None, "a set of pairs has noisy images"
                noisy = sample.noisy.astype(np.float32) / white_level(sample.noisy)
            yield NoisySample(name=name, clean=sample.clean, noisy=noisy)

    def _protocol_samples(self, dataset: Dataset, known: str) -> Iterator[NoisySample]:
        assert self.case is not None
        current: list[np.ndarray] = []  # the image that `sizes` has just read

        def sizes() -> Iterator[tuple[str, int, int]]:
            for name in dataset.names:
                current[:] = [crop(dataset.load(name).clean)]
                height, width = current[0].shape[:2]
                yield name, height, width

        for name, noise in zip(dataset.names, case_noise(known, self.case, sizes()), strict=True):
            clean = current[0]
            yield NoisySample(name=name, clean=clean, noisy=(clean / white_level(clean) + noise).astype(np.float32))


def parse_noise(name: str) -> TestNoise:
    """Return the noise of that name; see the module.

    Raises:
        ValueError: unknown name, or numbers outside their ranges.
    """
    kind, *values = name.split(":")
    if kind == PAIRS and not values:
        return TestNoise(name=name)
    if kind == "niid" and values and values[0] in map(str, CASES) and values[1:] in ([], ["clean"]):
        case = int(values[0])
        return TestNoise(name=name, add=lambda clean: _add_niid(clean, case), case=None if values[1:] else case)
    numbers = [_level(text) for text in values]
    if kind == "awgn" and len(numbers) == 1 and numbers[0] is not None:
        sigma = numbers[0] / 255
        return TestNoise(name=name, sigma=sigma, add=lambda clean: add_test_awgn(clean, sigma))
    if kind == "poisson" and len(numbers) == 2 and numbers[0] and numbers[1] is not None:
        gain, sigma = numbers[0] / 255, numbers[1] / 255
        return TestNoise(name=name, add=lambda clean: _add_poisson(clean, gain, sigma))
    raise ValueError(f"noise must be one of {NAMES_HELP}, with levels in [0, 255]; got {name!r}")


def noises_of(dataset: Dataset, names: Sequence[str]) -> list[TestNoise]:
    """Return the noises that `dataset` is scored with: its own if it has pairs, those of `names` otherwise.

    Raises:
        ValueError: as `parse_noise` and `TestNoise.check`.
    """
    noises = [parse_noise(name) for name in ((PAIRS,) if dataset.is_paired else names)]
    for noise in noises:
        noise.check(dataset)
    return noises


def _level(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 255 else None


def _add_niid(clean: np.ndarray, case: int) -> np.ndarray:
    levels = resize_map(sigma_map(case).astype(np.float64), *clean.shape[:2])
    return (clean + np.random.RandomState(0).randn(*clean.shape) * levels[..., None]).astype(np.float32)


def _add_poisson(clean: np.ndarray, gain: float, sigma: float) -> np.ndarray:
    """Photon noise of `gain` per photon and read noise of `sigma`: variance gain x + sigma^2 at brightness x."""
    generator = np.random.RandomState(0)
    photons = generator.poisson(clean / gain)
    return (gain * photons + sigma * generator.randn(*clean.shape)).astype(np.float32)
