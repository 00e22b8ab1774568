from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.io import loadmat

from pipeline.data.dnd import read_boxes, read_noisy, write_submission

SIZE, CROP = 24, 8


@pytest.fixture(scope="module")
def dnd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of DND's form with small images; the boxes count from 1 and include their ends."""
    folder = tmp_path_factory.mktemp("dnd")
    (folder / "images_srgb").mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(folder / "info.mat", "w") as file:
        references = np.empty((1, 50), dtype=h5py.ref_dtype)
        for index in range(50):
            corners = rng.integers(0, SIZE - CROP, (20, 2)) + 1
            box = np.concatenate([corners, corners + CROP - 1], axis=1).astype(np.float64)
            file[f"box{index}"] = box.T
            references[0, index] = file[f"box{index}"].ref
        file["info/boundingboxes"] = references
    for index in range(50):
        with h5py.File(folder / "images_srgb" / f"{index + 1:04}.mat", "w") as file:
            file["InoisySRGB"] = rng.random((3, SIZE + 8, SIZE))  # transposed: height 24, width 32
    return folder


def test_boxes_and_images(dnd: Path) -> None:
    boxes = read_boxes(dnd)
    assert len(boxes) == 50
    for box in boxes:
        assert box.shape == (20, 4)
        assert (box[:, 1] - box[:, 0] == CROP).all()
        assert (box[:, 3] - box[:, 2] == CROP).all()
        assert box.min() >= 0
    image = read_noisy(dnd, 4)
    assert image.shape == (SIZE, SIZE + 8, 3)
    with h5py.File(dnd / "images_srgb" / "0005.mat") as file:
        np.testing.assert_allclose(image, np.asarray(file["InoisySRGB"]).transpose(2, 1, 0), atol=1e-7)


def test_a_submission_has_the_official_shape(dnd: Path, tmp_path: Path) -> None:
    """50 files; 20 single-precision crops in each, not raw, version 1.0; values stay in [0, 1]."""
    paths = write_submission(dnd, tmp_path / "out", lambda noisy: 2 * noisy)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"{i:04}.mat" for i in range(1, 51)]
    content = loadmat(paths[7])
    assert content["eval_version"].item() == "1.0"
    assert not content["israw"].item()
    crops = content["Idenoised"].reshape(-1)
    assert crops.shape == (20,)
    noisy = read_noisy(dnd, 7)
    for crop, (top, bottom, left, right) in zip(crops, read_boxes(dnd)[7], strict=True):
        assert crop.dtype == np.float32
        np.testing.assert_allclose(crop, (2 * noisy[top:bottom, left:right]).clip(0, 1), atol=1e-6)


def test_a_submission_goes_on_where_it_stopped(dnd: Path, tmp_path: Path) -> None:
    calls = []

    def failing(noisy: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 70:
            raise KeyboardInterrupt
        return noisy

    with pytest.raises(KeyboardInterrupt):
        write_submission(dnd, tmp_path, failing)
    assert len(list(tmp_path.glob("*.mat"))) == 3
    first = (tmp_path / "0001.mat").stat().st_mtime_ns
    calls.clear()
    write_submission(dnd, tmp_path, lambda noisy: calls.append(1) or noisy)
    assert len(calls) == 47 * 20
    assert (tmp_path / "0001.mat").stat().st_mtime_ns == first


def test_wrong_files_are_named(dnd: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"info\.mat does not exist"):
        read_boxes(tmp_path)
    with h5py.File(tmp_path / "info.mat", "w") as file:
        file["camera"] = 1
    with pytest.raises(ValueError, match=r"info\.mat must hold `info/boundingboxes`, got camera"):
        read_boxes(tmp_path)
    (tmp_path / "info.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"info\.mat cannot be read as a MATLAB 7\.3 \(HDF5\) file"):
        read_boxes(tmp_path)
    (tmp_path / "images_srgb").mkdir()
    with h5py.File(tmp_path / "images_srgb" / "0001.mat", "w") as file:
        file["raw"] = 1
    with pytest.raises(ValueError, match=r"0001\.mat must hold `InoisySRGB`, got raw"):
        read_noisy(tmp_path, 0)


def write_claim(path: Path, name: str, shape: tuple[int, ...], **settings: Any) -> None:
    """Write a file of a few kilobytes whose header claims an array of `shape`, none of which is stored."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, shape, **{"dtype": np.float64, "chunks": tuple(min(n, 64) for n in shape)} | settings)
    assert path.stat().st_size < 100_000


def test_arrays_that_claim_to_be_huge_are_refused(tmp_path: Path) -> None:
    image, info = tmp_path / "images_srgb" / "0001.mat", tmp_path / "info.mat"
    write_claim(image, "InoisySRGB", (3, 10**6, 10**6))
    with pytest.raises(ValueError, match=r"0001\.mat must hold at most 267000000 numbers in InoisySRGB, got"):
        read_noisy(tmp_path, 0)
    write_claim(image, "InoisySRGB", (3, 8, 8), chunks=(3, 2**14, 2**14), maxshape=(3, None, None))
    with pytest.raises(ValueError, match=r"0001\.mat must hold at most 267000000 numbers"):
        read_noisy(tmp_path, 0)
    write_claim(image, "InoisySRGB", (3, 8, 8), dtype="S1000000")
    with pytest.raises(ValueError, match=r"0001\.mat must hold at most .* numbers"):
        read_noisy(tmp_path, 0)
    write_claim(info, "info/boundingboxes", (10**12,), dtype=h5py.ref_dtype)
    with pytest.raises(ValueError, match=r"info\.mat must hold at most 50 numbers in info/boundingboxes"):
        read_boxes(tmp_path)
    write_claim(info, "info/boundingboxes", (50,), dtype=h5py.ref_dtype)
    with pytest.raises(ValueError, match=r"info\.mat cannot be read as a MATLAB 7\.3 \(HDF5\) file"):  # null references
        read_boxes(tmp_path)


def test_an_array_of_another_file_is_refused(dnd: Path, tmp_path: Path) -> None:
    (tmp_path / "images_srgb").mkdir()
    other = dnd / "images_srgb" / "0001.mat"
    with h5py.File(tmp_path / "images_srgb" / "0001.mat", "w") as file:
        file["InoisySRGB"] = h5py.ExternalLink(str(other), "InoisySRGB")
    with h5py.File(tmp_path / "images_srgb" / "0002.mat", "w") as file:
        file.create_dataset("InoisySRGB", (3, 8, 8), np.uint8, external=[(str(other), 0, 192)])
    for index in (0, 1):
        with pytest.raises(ValueError, match=rf"000{index + 1}\.mat must hold the array InoisySRGB itself"):
            read_noisy(tmp_path, index)
