import numpy as np
import pytest
import torch

from pipeline.data.patches import PatchSource


def test_patches_have_the_promised_shape_and_range(source: PatchSource, generator: torch.Generator) -> None:
    noisy, clean = source.sample(5, generator)
    assert noisy.shape == clean.shape == (5, 3, 16, 16)
    assert noisy.dtype == clean.dtype == torch.float32
    assert 0 <= clean.min() and clean.max() <= 1
    assert (noisy - clean).std() == pytest.approx(25 / 255, rel=0.1)


def test_the_same_generator_state_gives_the_same_patches(source: PatchSource) -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = source.sample(4, generator)
    after = source.sample(4, generator)
    generator.set_state(state)
    again = source.sample(4, generator)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], after[1])


def test_each_of_the_eight_symmetries_occurs(generator: torch.Generator) -> None:
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    source = PatchSource([image], patch_size=4, sigma_range=(0, 0))
    _, clean = source.sample(200, generator)
    found = {(patch * 255).round().byte().permute(1, 2, 0).numpy().tobytes() for patch in clean}
    turned = [np.rot90(image, turns) for turns in range(4)]
    assert found == {patch.tobytes() for patch in turned} | {patch[:, ::-1].tobytes() for patch in turned}
    assert len(found) == 8


def test_patches_come_from_everywhere_in_the_image(generator: torch.Generator) -> None:
    rows, columns = np.mgrid[:12, :20]
    image = np.stack([rows, columns, rows], axis=2).astype(np.uint8)
    source = PatchSource([image], patch_size=4, sigma_range=(0, 0))
    _, clean = source.sample(500, generator)
    lowest = (clean[:, :2] * 255).round().amin(dim=(2, 3))  # the patch's top and left, whatever its symmetry
    assert set(lowest[:, 0].tolist()) == set(range(9))
    assert set(lowest[:, 1].tolist()) == set(range(17))


def test_images_are_drawn_in_proportion_to_their_pixels(generator: torch.Generator) -> None:
    small, large = np.zeros((8, 8, 3), np.uint8), np.full((24, 24, 3), 255, np.uint8)
    _, clean = PatchSource([small, large], patch_size=8, sigma_range=(0, 0)).sample(1000, generator)
    assert clean.mean() == pytest.approx(0.9, abs=0.03)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="`images` must hold at least one image, got none"):
        PatchSource([], patch_size=16, sigma_range=(0, 0))


def test_an_image_smaller_than_a_patch_is_refused(images: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"image 1 of shape \(70, 40, 3\) is smaller than `patch_size` 44"):
        PatchSource(images, patch_size=44, sigma_range=(0, 0))


def test_pairs_are_cut_and_turned_together(images: list[np.ndarray], generator: torch.Generator) -> None:
    pairs = [np.concatenate([image, image // 2], axis=2) for image in images]
    noisy, clean = PatchSource(pairs, patch_size=16, noise_model="pairs", sigma_range=(0, 0)).sample(20, generator)
    assert noisy.shape == clean.shape == (20, 3, 16, 16)
    assert torch.equal((clean * 255).round() // 2, (noisy * 255).round())


@pytest.mark.parametrize(("model", "given", "wanted"), [("pairs", 3, 6), ("awgn", 6, 3)])
def test_images_must_have_the_channels_of_their_noise_model(model: str, given: int, wanted: int) -> None:
    image = np.zeros((16, 16, given), np.uint8)
    with pytest.raises(ValueError, match=f"image 0 must have {wanted} channels with noise model {model}, got shape"):
        PatchSource([image], patch_size=16, noise_model=model, sigma_range=(0, 0))


def test_deep_images_keep_their_bits_in_patches(generator: torch.Generator) -> None:
    image = (np.arange(12 * 12 * 3) * 151 % 65536).astype(np.uint16).reshape(12, 12, 3)
    _, clean = PatchSource([image], patch_size=12, sigma_range=(0, 0)).sample(4, generator)
    assert clean.dtype == torch.float32
    for patch in clean:
        assert torch.equal((patch * 65535).round().long().flatten().sort()[0],
                           torch.from_numpy(np.sort(image.astype(np.int64), axis=None)))  # fmt: skip


def test_a_deep_image_leaves_the_patches_of_others_as_they_are(images: list[np.ndarray]) -> None:
    dark = np.zeros(images[0].shape, np.uint8)
    batches = [
        PatchSource([*images, other], patch_size=16, sigma_range=(0.1, 0.1)).sample(
            32, torch.Generator().manual_seed(0)
        )
        for other in (dark, dark.astype(np.uint16))
    ]
    for one, deep in zip(*batches, strict=True):
        assert torch.equal(one, deep)
