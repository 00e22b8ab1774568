import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import to_16_bit
from pipeline.pictures import ComparisonRow, comparison_figure, most_detailed_crop


@pytest.fixture
def row() -> ComparisonRow:
    random = np.random.default_rng(0)
    clean = np.full((120, 90, 3), 90, dtype=np.uint8)
    clean[70:110, 40:80] = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    noisy = np.clip(clean + random.normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
    return ComparisonRow(name="square", noisy=noisy, prior=clean, denoised=noisy, clean=clean)


def test_the_crop_lies_where_the_detail_is(row: ComparisonRow) -> None:
    top, left, height, width = most_detailed_crop(row.clean, 40)
    assert (height, width) == (40, 40)
    assert abs(top - 70) <= 4
    assert abs(left - 40) <= 4


def test_texture_that_fills_the_crop_beats_one_hard_edge() -> None:
    image = np.zeros((32, 96, 3), dtype=np.uint8)
    image[:, 16:48] = 255
    image[::2, 64:] = 20
    assert most_detailed_crop(image, 32)[:2] == (0, 64)


def test_a_flat_image_and_a_small_one_have_a_crop_too() -> None:
    assert most_detailed_crop(np.zeros((40, 40, 3), dtype=np.uint8), 16) == (0, 0, 16, 16)
    assert most_detailed_crop(np.zeros((7, 40, 3), dtype=np.uint8), 16) == (0, 0, 7, 16)
    assert most_detailed_crop(np.zeros((1, 1, 3), dtype=np.uint8), 16) == (0, 0, 1, 1)
    with pytest.raises(ValueError, match="`crop_size` must be at least 1, got 0"):
        most_detailed_crop(np.zeros((4, 4, 3), dtype=np.uint8), 0)


def test_the_figure_grows_with_rows_and_columns_and_is_reproducible(row: ComparisonRow, tmp_path: Path) -> None:
    def draw(rows: list[ComparisonRow], name: str) -> tuple[tuple[int, int], bytes]:
        path = tmp_path / "pictures" / name
        comparison_figure(rows, path, title="Denoiser", crop_size=32)
        with Image.open(path) as image:
            return image.size, image.tobytes()

    one, pixels = draw([row], "one.png")
    assert draw([row], "again.png") == (one, pixels)
    assert draw([replace(row, prior=None)], "no_prior.png")[0][0] < one[0]
    two, _ = draw([row, replace(row, prior=None)], "two.png")
    assert two[0] == one[0]
    assert two[1] > one[1]


def test_crops_are_drawn_with_their_own_pixels(row: ComparisonRow, tmp_path: Path) -> None:
    red = np.zeros_like(row.clean)
    red[..., 0] = 255
    comparison_figure([replace(row, denoised=red, prior=None)], tmp_path / "red.png")
    with Image.open(tmp_path / "red.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    columns = (pixels == (255, 0, 0)).all(axis=2).any(axis=0).nonzero()[0]
    middle = columns.mean() / pixels.shape[1]  # the third of four columns: whole, noisy, denoised, clean
    assert 0.5 < middle < 0.75


def test_deep_images_look_as_those_of_8_bits(row: ComparisonRow, tmp_path: Path) -> None:
    deep = {version: to_16_bit(getattr(row, version)) for version in ("clean", "noisy", "denoised", "prior")}
    for name, each in {"shallow.png": row, "deep.png": replace(row, **deep)}.items():
        comparison_figure([each], tmp_path / name)
    assert (tmp_path / "shallow.png").read_bytes() == (tmp_path / "deep.png").read_bytes()
    with pytest.raises(ValueError, match="`noisy` of 'square' must be uint16 of shape .* got uint8"):
        replace(row, **deep | {"noisy": row.noisy})


def test_drawing_leaves_no_pyplot_state(row: ComparisonRow, tmp_path: Path) -> None:
    was_loaded = "matplotlib.pyplot" in sys.modules
    comparison_figure([row], tmp_path / "figure.png")
    assert ("matplotlib.pyplot" in sys.modules) == was_loaded


def test_what_cannot_be_compared_is_refused(row: ComparisonRow, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        comparison_figure([], tmp_path / "figure.png")
    with pytest.raises(ValueError, match=r"`prior` of 'square' must be uint8 of shape \(120, 90, 3\), got float64"):
        replace(row, prior=row.clean / 255)
    with pytest.raises(ValueError, match=r"`noisy` of 'square' .* got uint8 of shape \(120, 89, 3\)"):
        replace(row, noisy=row.noisy[:, 1:])
