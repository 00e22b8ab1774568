"""Test noise by name, over a set of images.

Called by `pipeline.evaluation.command`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.datasets import Dataset
from pipeline.data.noise import add_test_awgn

PAIRS = "pairs"


@dataclass(frozen=True, kw_only=True)
class NoisySample:
    """One test image.

    Attributes:
        name: of the image.
        clean: (H, W, 3) uint8.
        noisy: (H, W, 3) float32 on the [0, 1] scale, not clipped.
    """

    name: str
    clean: np.ndarray
    noisy: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TestNoise:
    """Noise of a test protocol.

    Attributes:
        name: `awgn:25` or `pairs`.
        sigma: on the [0, 1] scale, where every pixel has the same and it is known.
    """

    name: str
    sigma: float | None

    def check(self, dataset: Dataset) -> None:
        """Raise a ValueError if this noise cannot be had for `dataset`."""
        if self.name == PAIRS and not dataset.is_paired:
            raise ValueError(f"noise `pairs` needs noisy images beside the clean ones; {dataset.name} has none")

    def samples(self, dataset: Dataset) -> Iterator[NoisySample]:
        """Go over the images of `dataset` in its order."""
        self.check(dataset)
        for name in dataset.names:
            sample = dataset.load(name)
            if self.sigma is not None:
                noisy = add_test_awgn(sample.clean / 255, self.sigma)
            else:
                assert sample.noisy is not None, "a set of pairs has noisy images"
                noisy = sample.noisy.astype(np.float32) / 255
            yield NoisySample(name=name, clean=sample.clean, noisy=noisy)


def parse_noise(name: str) -> TestNoise:
    """Return the noise of that name.

    Raises:
        ValueError: unknown name, or sigma outside [0, 255].
    """
    if name == PAIRS:
        return TestNoise(name=name, sigma=None)
    kind, _, number = name.partition(":")
    try:
        sigma_255 = float(number)
    except ValueError:
        sigma_255 = -1.0
    if kind != "awgn" or not 0 <= sigma_255 <= 255:
        raise ValueError(f"noise must be awgn:SIGMA with a sigma in [0, 255], or pairs; got {name!r}")
    return TestNoise(name=name, sigma=sigma_255 / 255)
