"""Numbers are facts about the published protocol, measured on its own maps and image sets."""

import numpy as np
import pytest

from pipeline.evaluation import vdn_protocol
from pipeline.evaluation.vdn_protocol import CASES, case_noise, crop, raw_map, recognise, resize_map, sigma_map


@pytest.mark.parametrize(
    ("case", "low", "high"),
    [(1, -6.54971923, 8.10539345), (2, -1.99996547, 1.99995688), (3, 1.74632476e-06, 2.2354754e-05)],
)
def test_raw_maps_have_the_published_ranges(case: int, low: float, high: float) -> None:
    found = raw_map(case)
    assert found.shape == (256, 256)
    assert (found.min(), found.max()) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize(("case", "mean", "rms"), [(1, 40.646, 41.510), (2, 45.081, 47.847), (3, 46.793, 48.028)])
def test_noise_levels(case: int, mean: float, rms: float) -> None:
    levels = 255 * sigma_map(case)
    assert (levels.min(), levels.max()) == pytest.approx((10, 75))
    assert levels.mean() == pytest.approx(mean, abs=6e-4)
    assert np.sqrt((levels**2).mean()) == pytest.approx(rms, abs=6e-4)


def test_the_first_normals_after_the_maps() -> None:
    generator = np.random.RandomState()
    generator.set_state(vdn_protocol._start()[1])
    assert generator.randn(4) == pytest.approx([-0.558757, 1.80105352, -0.59254827, 1.437978], abs=5e-9)


def test_noise_of_a_case_follows_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sets of two small images, the noise equals one written out draw by draw."""
    vdn_protocol._state_before.cache_clear()
    monkeypatch.setattr(vdn_protocol, "_PIXELS", {"LIVE1": (16 * 32, 48 * 16), "Set5": (16 * 16,)})
    generator = np.random.RandomState()
    generator.set_state(vdn_protocol._start()[1])
    expected = {}
    for name, sizes in (("LIVE1", [(16, 32), (48, 16)]), ("Set5", [(16, 16)])):
        for case in CASES:
            levels = sigma_map(case)
            for size in sizes:
                levels = resize_map(levels, *size)  # from the resized map of the image before
                expected.setdefault((name, case), []).append(generator.randn(*size, 3) * levels[..., None])
    for (name, case), noises in expected.items():
        found = list(case_noise(name, case, [("a", *noise.shape[:2]) for noise in noises]))
        assert len(found) == len(noises)
        for one, other in zip(found, noises, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    vdn_protocol._state_before.cache_clear()


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image a of LIVE1 must have 393216 pixels .* got 16x16"):
        next(case_noise("LIVE1", 1, [("a", 16, 16)]))


def test_unknown_case() -> None:
    with pytest.raises(ValueError, match="`case` must be 1, 2 or 3, got 4"):
        raw_map(4)


def test_crop_to_multiples_of_16() -> None:
    image = np.arange(33 * 50 * 3).reshape(33, 50, 3)
    np.testing.assert_array_equal(crop(image), image[:32, :48])


def test_resizing_agrees_with_scipy() -> None:
    """Halving and doubling with pixel centres at halves; borders are repeated."""
    from scipy.ndimage import map_coordinates

    levels = sigma_map(1)
    for height, width in ((320, 480), (100, 130)):
        rows = (np.arange(height) + 0.5) * 256 / height - 0.5
        columns = (np.arange(width) + 0.5) * 256 / width - 0.5
        grid = np.meshgrid(rows, columns, indexing="ij")
        expected = map_coordinates(levels, grid, order=1, mode="nearest")
        np.testing.assert_allclose(resize_map(levels, height, width), expected, atol=1e-12)


def test_sets_are_recognised_by_their_images() -> None:
    size = (512, 512)
    assert recognise(["woman_GT", "baby_GT", "head_GT", "bird_GT", "butterfly_GT"], size) == "Set5"
    assert recognise(list(vdn_protocol._LIVE1), size) == "LIVE1"
    assert recognise(["baby", "bird"], size) is None


@pytest.mark.parametrize(
    ("size", "expected"), [((321, 481), "CBSD68"), ((481, 321), "CBSD68"), ((480, 320), "CBSD68"), ((512, 512), None)]
)
def test_cbsd68_is_known_by_its_size_too(size: tuple[int, int], expected: str | None) -> None:
    assert recognise([f"{number:04}" for number in range(68)], size) == expected
    assert len(vdn_protocol._LIVE1) == 29
