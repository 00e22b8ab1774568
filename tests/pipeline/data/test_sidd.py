import os
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.io
from scipy.io import savemat

from pipeline.data import sidd
from pipeline.data.datasets import open_dataset

NOISY, CLEAN = "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"


@pytest.fixture
def blocks(tmp_path: Path) -> dict[str, np.ndarray]:
    """Both files of a validation set of 2 images with 3 blocks each."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8) for name in (NOISY, CLEAN)}
    for name, array in arrays.items():
        savemat(tmp_path / f"{name}.mat", {name: array})
    return arrays


def test_validation_blocks_are_pairs(tmp_path: Path, blocks: dict[str, np.ndarray]) -> None:
    dataset = open_dataset(tmp_path / f"{NOISY}.mat")
    assert dataset.names == ("00/00", "00/01", "00/02", "01/00", "01/01", "01/02")
    assert dataset.is_paired
    sample = dataset.load("01/02")
    np.testing.assert_array_equal(sample.noisy, blocks[NOISY][1, 2])
    np.testing.assert_array_equal(sample.clean, blocks[CLEAN][1, 2])


def test_a_missing_array_is_named(tmp_path: Path, blocks: dict[str, np.ndarray]) -> None:
    savemat(tmp_path / f"{CLEAN}.mat", {"other": np.zeros(3)})
    with pytest.raises(ValueError, match=f"{CLEAN}.mat must hold the array `{CLEAN}`, got other"):
        open_dataset(tmp_path / f"{NOISY}.mat")


def test_an_array_of_another_shape_is_refused(tmp_path: Path, blocks: dict[str, np.ndarray]) -> None:
    savemat(tmp_path / f"{CLEAN}.mat", {CLEAN: np.zeros((2, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(images, blocks, H, W, 3\), got uint8 \(2, 3\)"):
        open_dataset(tmp_path / f"{NOISY}.mat")


def test_damaged_and_missing_files(tmp_path: Path, blocks: dict[str, np.ndarray]) -> None:
    (tmp_path / f"{CLEAN}.mat").write_bytes(b"not a matrix" * 20)
    with pytest.raises(ValueError, match=f"{CLEAN}.mat cannot be read as a MATLAB file"):
        open_dataset(tmp_path / f"{NOISY}.mat")
    (tmp_path / f"{CLEAN}.mat").unlink()
    with pytest.raises(FileNotFoundError, match=f"{CLEAN}.mat does not exist"):
        open_dataset(tmp_path / f"{NOISY}.mat")
    with pytest.raises(ValueError, match="must be named as in SIDD"):
        open_dataset(tmp_path / "Blocks.mat")


def test_a_cut_off_file_is_tried_once_and_named(tmp_path: Path, blocks: dict[str, np.ndarray]) -> None:
    """The header is whole, so that opening finds nothing wrong."""
    path = tmp_path / f"{CLEAN}.mat"
    os.truncate(path, path.stat().st_size // 2)
    dataset = open_dataset(tmp_path / f"{NOISY}.mat")
    with mock.patch("scipy.io.loadmat", wraps=scipy.io.loadmat) as loading:
        for name in dataset.names:
            with pytest.raises(ValueError, match=rf"{CLEAN}\.mat cannot be read as a MATLAB file: .+"):
                dataset.load(name)
    assert sum(call.args[0] == path for call in loading.call_args_list) == 1


@pytest.mark.parametrize("shape", [(2**31 - 1, 2**31 - 1, 16, 16, 3), (2**31 - 1, 2**31 - 1, 0, 16, 3)])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused(
    tmp_path: Path, blocks: dict[str, np.ndarray], shape: tuple[int, ...]
) -> None:
    path = tmp_path / f"{CLEAN}.mat"
    content = path.read_bytes()
    sound = struct.pack("<5i", *blocks[CLEAN].shape)
    assert content.count(sound) == 1
    path.write_bytes(content.replace(sound, struct.pack("<5i", *shape)))
    with pytest.raises(ValueError, match=rf"{CLEAN}\.mat is damaged: its header claims"):
        open_dataset(tmp_path / f"{NOISY}.mat")


def test_more_blocks_than_any_such_file_has_are_refused(
    tmp_path: Path, blocks: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidd, "_MAX_VALUES", blocks[CLEAN].size - 1)
    with pytest.raises(ValueError, match=r"\.mat is damaged: its header claims"):
        open_dataset(tmp_path / f"{NOISY}.mat")
