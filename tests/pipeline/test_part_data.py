import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.part_data import (
    CachedFeatures,
    LiveFeatures,
    PatchSet,
    Split,
    compute_patch_set,
    patch_set_bytes,
    split_images,
)
from pipeline.data.patches import PatchSource
from pipeline.priors import Prior


def numbered(height: int, width: int, first: int) -> np.ndarray:
    """Return an image in which every pixel has a number of its own, spread over the three channels."""
    numbers = first + np.arange(height * width).reshape(height, width)
    return np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], axis=2).astype(np.uint8)


def pixels(images: list[np.ndarray]) -> set[bytes]:
    return {pixel.tobytes() for image in images for pixel in image.reshape(-1, 3)}


@pytest.mark.parametrize("num_images", [1, 3, 9, 10, 25])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_halves_share_no_pixel_and_lose_none(num_images: int, share: float) -> None:
    images = [numbered(20 + 4 * (i % 2), 22, first=1000 * i) for i in range(num_images)]
    weights, architecture = split_images(images, share, patch_size=4)
    assert not pixels(weights) & pixels(architecture)
    assert pixels(weights) | pixels(architecture) == pixels(images)
    found_share = len(pixels(architecture)) / len(pixels(images))
    assert found_share == pytest.approx(share, abs=0.05)


def test_few_images_are_cut_across_their_longer_side() -> None:
    wide, tall = np.zeros((20, 40, 3), np.uint8), np.zeros((40, 20, 3), np.uint8)
    weights, architecture = split_images([wide, tall], 0.25, patch_size=4)
    assert [image.shape[:2] for image in weights] == [(20, 30), (30, 20)]
    assert [image.shape[:2] for image in architecture] == [(20, 10), (10, 20)]


def test_many_images_are_dealt_whole_and_spread() -> None:
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(20)]
    weights, architecture = split_images(images, 0.5, patch_size=8)
    assert all(image.shape == (8, 8, 3) for image in weights + architecture)
    dealt = [image[0, 0, 0] for image in architecture]
    assert np.diff(dealt).tolist() == [2] * 9


def test_pieces_smaller_than_a_patch_are_refused() -> None:
    images = [np.zeros(shape, np.uint8) for shape in ((20, 30, 3), (40, 40, 3), (10, 40, 3))]
    with pytest.raises(ValueError) as caught:
        split_images(images, 0.5, patch_size=16, names=["a", "b", "c"])
    lines = str(caught.value).splitlines()
    assert [line.split(" is ")[0] for line in lines] == [
        "training image a of 30x20 pixels", "training image c of 40x10 pixels"
    ]  # fmt: skip
    assert all("cut into two pieces of at least `search.patch_size` 16" in line for line in lines)


@pytest.fixture
def sources(images: list[np.ndarray]) -> dict[Split, PatchSource]:
    halves = split_images(images, 0.5, patch_size=16)
    return {
        split: PatchSource(half, patch_size=16, noise_model="niid", sigma_range=(0, 0))
        for split, half in zip(("weights", "architecture"), halves, strict=True)
    }


@pytest.fixture
def cached(quick_prior: Prior, sources: dict[Split, PatchSource], generator: torch.Generator) -> PatchSet:
    return compute_patch_set(
        quick_prior, sources, num_patches=10, architecture_share=0.4, batch_size=4, generator=generator
    )


def test_the_estimate_is_the_real_size(cached: PatchSet) -> None:
    assert cached.num_bytes == patch_set_bytes(10, 16, 16)
    assert cached.num_weights == 6


def test_cached_features_are_the_priors_on_the_same_noisy_patches(cached: PatchSet, quick_prior: Prior) -> None:
    noisy, *outputs = (torch.from_numpy(signal) for signal in cached.signals)
    for output, expected in zip(outputs, quick_prior.features(noisy), strict=True):
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_progress_counts_patches(quick_prior: Prior, sources: dict[Split, PatchSource]) -> None:
    calls: list[tuple[int, int]] = []
    compute_patch_set(
        quick_prior, sources, num_patches=10, architecture_share=0.4, batch_size=4,
        generator=torch.Generator().manual_seed(0), progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(4, 10), (6, 10), (10, 10)]


@pytest.mark.parametrize("part_index", [0, 1, 2])
def test_cached_batches_are_pairs_from_the_right_half(cached: PatchSet, part_index: int) -> None:
    features = CachedFeatures(cached, part_index, torch.device("cpu"))
    inputs, targets = (torch.from_numpy(cached.signals[part_index + step]) for step in (0, 1))
    for split, rows in (("weights", range(6)), ("architecture", range(6, 10))):
        x, target = features.sample(split, 100, torch.Generator().manual_seed(0))
        found = [rows_of(inputs, row) for row in x]
        assert set(found) == set(rows)
        assert [rows_of(targets, row) for row in target] == found


def rows_of(signals: Tensor, row: Tensor) -> int:
    """Return the index of the patch that `row` is."""
    (index,) = (i for i, signal in enumerate(signals) if torch.equal(signal, row))
    return index


@pytest.mark.parametrize("part_index", [0, 1, 2])
@pytest.mark.parametrize("split", ["weights", "architecture"])
def test_live_batches_mean_what_cached_ones_do(
    quick_prior: Prior, sources: dict[Split, PatchSource], split: Split, part_index: int
) -> None:
    """The pair of a part is the prior's input and output of that part, for patches of the right half."""
    x, target = LiveFeatures(quick_prior, sources, part_index).sample(split, 3, torch.Generator().manual_seed(1))
    noisy, _ = sources[split].sample(3, torch.Generator().manual_seed(1))
    signals = [noisy, *quick_prior.features(noisy)]
    torch.testing.assert_close(x, signals[part_index], rtol=0, atol=1e-6)
    torch.testing.assert_close(target, signals[part_index + 1], rtol=0, atol=1e-6)
    assert not target.requires_grad


def test_few_images_of_fewer_scenes_are_dealt_whole() -> None:
    """Cut in two, each half of the data would hold a piece of every scene."""
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(8)]
    halves = split_images(images, 0.5, patch_size=4, scenes=[f"{i // 2}" for i in range(8)])
    assert [[image[0, 0, 0] for image in half] for half in halves] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    with pytest.raises(ValueError, match="2 training images of 1 scenes cannot be divided"):
        split_images(images[:2], 0.5, patch_size=4, scenes=["0", "0"])
