import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.mapped import MappedArray, map_array


@pytest.fixture(params=[np.uint8, np.uint16, np.float32])
def stored(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, np.ndarray]:
    array = np.random.default_rng(0).integers(0, 200, (7, 9, 6)).astype(request.param)
    np.save(tmp_path / "a.npy", array)
    return tmp_path / "a.npy", array


def test_a_mapped_array_is_the_written_one(stored: tuple[Path, np.ndarray]) -> None:
    path, array = stored
    mapped = map_array(path)
    assert isinstance(mapped, MappedArray)
    assert mapped.dtype == array.dtype
    assert np.array_equal(mapped, array)
    assert np.array_equal(np.load(path), array)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0, 0, 0] = 1


@pytest.mark.parametrize(
    "view", [np.s_[:], np.s_[2:5, 3:], np.s_[::-1, :, :3], np.s_[..., 3:], np.s_[3], np.s_[:0]], ids=str
)
def test_views_are_pickled_as_places_in_the_file(stored: tuple[Path, np.ndarray], view: tuple) -> None:
    path, array = stored
    mapped = np.rot90(map_array(path))[view]
    data = pickle.dumps(mapped, protocol=5)
    found = pickle.loads(data)
    assert np.array_equal(found, np.rot90(array)[view])
    assert str(path).encode() in data or mapped.size == 0


def test_the_pickle_of_a_large_array_is_small(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1000, 1000), np.uint8))
    assert len(pickle.dumps(map_array(tmp_path / "a.npy"), protocol=5)) < 500


def test_what_is_computed_is_pickled_with_its_contents(stored: tuple[Path, np.ndarray]) -> None:
    path, array = stored
    data = pickle.dumps(map_array(path) + 1, protocol=5)
    path.unlink()
    assert np.array_equal(pickle.loads(data), array + 1)


def test_a_map_outlives_its_file_but_its_pickle_does_not(stored: tuple[Path, np.ndarray]) -> None:
    path, array = stored
    mapped = map_array(path)
    data = pickle.dumps(mapped)
    path.unlink()
    assert np.array_equal(mapped, array)
    with pytest.raises(FileNotFoundError, match="decoded image .*a.npy is gone; `data.cache` must name a folder"):
        pickle.loads(data)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_maps_keep_no_file_open(stored: tuple[Path, np.ndarray]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    maps = [map_array(stored[0]) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(maps) == 20


def test_a_cut_off_file_is_refused(stored: tuple[Path, np.ndarray]) -> None:
    path, _ = stored
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.npy must hold \(7, 9, 6\) .* in C order, \d+ bytes, got \d+"):
        map_array(path)
