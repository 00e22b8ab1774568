"""Read, write and list images; the photographs that come with scikit-image.

Called by every command that takes images. Images in memory are (H, W, 3) uint8 RGB; tensors are (B, 3, H, W) float32 in
[0, 1].
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.checkpoint import written_beside
from pipeline.data.png16 import decode_png16

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Disjoint photographs that scikit-image carries in its wheel; "left" of the stereo pair validates, "right" is not used.
TRAINING_PHOTOGRAPHS = ("astronaut", "coffee", "rocket")
VALIDATION_PHOTOGRAPHS = ("chelsea", "motorcycle_left")
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_MAX_PIXELS = 89_000_000  # 267 MB in memory; what Pillow itself warns of is a little more
_VALIDATION_CROPS = {"motorcycle_left": (384, 512)}  # height, width from the top left: both images of similar size


def list_images(folder: Path | str) -> list[Path]:
    """List the image files of `folder`, sorted by name.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"image folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return paths


class _KindError(ValueError):
    """An image that was read, but is not of a kind that can be used."""


def read_image(path: Path | str) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB.

    Grey images are repeated over the three channels, 16-bit images rounded to 8 bits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an image that can be decoded, is too large or transparent, or neither RGB nor grey.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {_MAX_PIXELS}")
            if "transparency" in image.info:
                raise _KindError(f"image {path} must be RGB or grey, got Pillow mode {image.mode!r} with transparency")
            if _is_deep(path, image):
                return _from_16_bit(_decode_16_bit(path, image), path)
            if image.mode not in ("RGB", "L", "1", "P"):
                raise _KindError(f"image {path} must be RGB or grey, got Pillow mode {image.mode!r}")
            return np.asarray(image.convert("RGB"))
    except _KindError:
        raise
    except Exception as error:  # a damaged file makes Pillow and tifffile raise nearly every kind
        raise ValueError(f"image {path} cannot be decoded: {error}") from error


def _is_deep(path: Path, image: Image.Image) -> bool:
    """Tell whether a file has more than 8 bits per channel, of which Pillow would keep the upper 8 of RGB."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24] == 16  # in the header chunk, which comes first
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8  # type: ignore[attr-defined]
    return image.mode.startswith("I;16")


def _decode_16_bit(path: Path, image: Image.Image) -> np.ndarray:
    import tifffile  # here: few images need it

    if image.format == "PNG":
        return decode_png16(path.read_bytes())
    if image.format != "TIFF":
        return np.asarray(image)
    with tifffile.TiffFile(path) as file:
        series, kind = file.series[0], tifffile.PHOTOMETRIC(file.pages.first.photometric)
        if kind not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise ValueError(f"black must be 0, got a TIFF of kind {kind.name}")
        if series.nbytes > 8 * _MAX_PIXELS:
            raise ValueError(f"it has {series.nbytes} bytes, more than {8 * _MAX_PIXELS}")
        array = series.asarray()
        return array.transpose(1, 2, 0) if series.axes == "SYX" else array  # SYX: a plane per channel


def _from_16_bit(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.dtype != np.uint16 or array.ndim != 3 or array.shape[2] != 3:
        raise _KindError(f"image {path} must be RGB or grey, got {array.dtype} of shape {array.shape}")
    return np.round(array / 257).astype(np.uint8)  # 65535 / 255


def write_image(path: Path | str, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 image; the format follows the file name."""
    with written_beside(path) as beside:
        Image.fromarray(image).save(beside)


def photographs(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return photographs of scikit-image by name, for example `astronaut`; validation ones cropped as documented."""
    from skimage import data  # here: importing it costs half a second that most commands do not need

    images = {}
    for name in names:
        if name == "motorcycle_left":
            image = data.stereo_motorcycle()[0]
        else:
            image = getattr(data, name)()
        if name in _VALIDATION_CROPS:
            height, width = _VALIDATION_CROPS[name]
            image = image[:height, :width]
        images[name] = np.ascontiguousarray(image[..., :3])
    return images


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 in [0, 255] or float in [0, 1] -> (1, 3, H, W) float32 in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return tensor.float() / 255 if image.dtype == np.uint8 else tensor.float()


def to_image(tensor: Tensor) -> np.ndarray:
    """(1, 3, H, W) or (3, H, W) in [0, 1] -> (H, W, 3) uint8, clamped, rounded half to even."""
    array = tensor.detach().reshape(tensor.shape[-3:]).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0))
