"""Arrays whose memory is a .npy file, so that a set larger than memory can be learned from.

Made by `pipeline.data.loading`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch


class MappedArray(np.ndarray):
    """A read-only array in a file, pickled as the file's path and a place in it, not as its contents.

    So Ray sends no pixels: a worker maps the same file. What is computed from it is an ordinary array in memory.
    """

    _path: str | None = None
    _file: np.ndarray | None = None  # all bytes of the file; keeps the mapping alive

    def __array_finalize__(self, parent: Any) -> None:
        """Let a view know the file that it is a view of."""
        self._path = getattr(parent, "_path", None)
        self._file = getattr(parent, "_file", None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Describe where in the file the array lies."""
        if self._file is not None:
            offset = _address(self) - _address(self._file)
            if 0 <= offset < self._file.nbytes:
                return _view, (self._path, offset, self.shape, self.strides, self.dtype.str)
        return np.asarray(self).__reduce_ex__(protocol)


def map_array(path: Path) -> MappedArray:
    """Map a .npy file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a .npy file of numbers in C order, or cut off.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    num_bytes = offset + int(np.prod(shape)) * dtype.itemsize
    if is_fortran or dtype.hasobject or path.stat().st_size != num_bytes:
        raise ValueError(f"{path} must hold {shape} {dtype} in C order, {num_bytes} bytes, got {path.stat().st_size}")
    strides = tuple(int(np.prod(shape[axis + 1 :])) * dtype.itemsize for axis in range(len(shape)))
    return _view(str(path.absolute()), offset, shape, strides, dtype.str)


def _view(path: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> MappedArray:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"decoded image {path} is gone; `data.cache` must name a folder that stays, and that all machines of a "
            "cluster share"
        )
    # Unlike numpy.memmap, torch keeps no file open for every mapping: thousands of images would exceed the limit.
    size = os.stat(path).st_size
    file = torch.from_file(path, shared=False, size=size, dtype=torch.uint8).numpy()
    array = np.ndarray.__new__(MappedArray, shape, np.dtype(dtype), file, offset, strides)
    array._path, array._file = path, file
    array.flags.writeable = False
    return array


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
