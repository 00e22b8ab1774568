"""Read, write and list images; the photographs that come with scikit-image.

Called by every command that takes images. Images in memory are (H, W, 3) RGB with the bits of their files: uint8, or
uint16 where white is 65535; tensors are (B, 3, H, W) float32 in [0, 1].
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ops.files import write_atomically, written_beside

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # whatever a file is called; others may start programs, as EPS does
# Disjoint photographs that scikit-image carries in its wheel; "left" of the stereo pair validates, "right" is not used.
TRAINING_PHOTOGRAPHS = ("astronaut", "coffee", "rocket")
VALIDATION_PHOTOGRAPHS = ("chelsea", "motorcycle_left")
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # tags of TIFF, the second of EXIF too
# Of 16-bit TIFF files: those without a header of their own, whose size would not be known before they are decoded.
_COMPRESSIONS = ("NONE", "LZW", "DEFLATE", "ADOBE_DEFLATE", "PACKBITS", "ZSTD", "LZMA")
_MAX_PIXELS = 89_000_000  # 267 MB in memory, 534 MB with 16 bits; what Pillow itself warns of is a little more
_PROMOTION = "`data.promote_grey=true` (`--promote-grey` of denoise and evaluate)"
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


def read_image(path: Path | str, *, promote_grey: bool = False) -> np.ndarray:
    """Read an image file as (H, W, 3) RGB, uint8 or uint16 as it is stored.

    Args:
        path: of the file.
        promote_grey: repeat a grey image over the three channels; otherwise it is refused.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `decode_image`.
    """
    image = decode_image(path, allow_grey=promote_grey)
    return np.repeat(image[..., np.newaxis], 3, axis=2) if image.ndim == 2 else image


def decode_image(path: Path | str, *, allow_grey: bool = False) -> np.ndarray:
    """Read an image file as (H, W, 3) RGB or, where that is allowed, (H, W) grey; uint8 or uint16 as it is stored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an image that can be decoded, is too large or transparent, or neither RGB nor grey;
            or it is grey and that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {_MAX_PIXELS}")
            if "transparency" in image.info:
                raise _KindError(f"image {path} must be RGB or grey, got Pillow mode {image.mode!r} with transparency")
            array = _decode_deep(path, image) if _is_deep(path, image) else _decode_8_bit(path, image)
    except _KindError:
        raise
    except Exception as error:  # a damaged file makes Pillow, tifffile and imagecodecs raise nearly every kind
        raise ValueError(f"image {path} cannot be decoded: {error}") from error
    if array.ndim == 2 and not allow_grey:
        raise ValueError(f"image {path} must be RGB, got grey; {_PROMOTION} repeats grey over the three channels")
    return array


def _decode_8_bit(path: Path, image: Image.Image) -> np.ndarray:
    if image.mode not in ("RGB", "L", "1", "P"):
        raise _KindError(f"image {path} must be RGB or grey, got Pillow mode {image.mode!r}")
    upright = ImageOps.exif_transpose(image)  # cameras store portraits lying, and say so
    return np.asarray(upright.convert("L" if image.mode in ("L", "1") else "RGB"))


def _is_deep(path: Path, image: Image.Image) -> bool:
    """Tell whether a file has more than 8 bits per channel, of which Pillow would keep the upper 8 of RGB."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24] == 16  # in the header chunk, which comes first
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8  # type: ignore[attr-defined]
    return image.mode.startswith("I;16")


def _decode_deep(path: Path, image: Image.Image) -> np.ndarray:
    import imagecodecs  # here: few images need it

    if image.format == "PNG":
        array = imagecodecs.png_decode(path.read_bytes())
    elif image.format == "TIFF":
        array = _decode_tiff(path)
    else:
        array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint16 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise _KindError(f"image {path} must be RGB or grey, got {array.dtype} of shape {array.shape}")
    return np.ascontiguousarray(_upright(array, image.getexif().get(_ORIENTATION, 1)))


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image as its EXIF orientation says, of which 1 is upright and 5 to 8 lie on a side."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array[::-1] if orientation in (3, 4, 7, 8) else array


def _decode_tiff(path: Path) -> np.ndarray:
    import tifffile  # here: few images need it

    with tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages.first
        kind, compression = tifffile.PHOTOMETRIC(page.photometric), tifffile.COMPRESSION(page.compression)
        if kind not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise ValueError(f"black must be 0, got a TIFF of kind {kind.name}")
        if compression.name not in _COMPRESSIONS:
            raise ValueError(f"its compression must be one of {', '.join(_COMPRESSIONS)}, got {compression.name}")
        if page.bitspersample != 16:
            raise ValueError(f"it must have 8 or 16 bits per channel, got {page.bitspersample}")
        num_bytes = max(series.nbytes, 2 * math.prod(page.chunks))  # a tile may claim more than the image
        if num_bytes > 8 * _MAX_PIXELS:
            raise ValueError(f"it has {num_bytes} bytes, more than {8 * _MAX_PIXELS}")
        array = series.asarray()
        return array.transpose(1, 2, 0) if series.axes == "SYX" else array  # SYX: a plane per channel


def write_image(path: Path | str, image: np.ndarray) -> None:
    """Write an (H, W, 3) RGB or (H, W) grey image; the format follows the file name, uint16 is written as PNG alone.

    Raises:
        ValueError: a uint16 image for another format.
    """
    if image.dtype != np.uint16:
        with written_beside(path) as beside:
            Image.fromarray(image).save(beside)
        return
    import imagecodecs  # here: few images need it

    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"an image of 16 bits must be written as .png, got {path}")
    write_atomically(path, bytes(imagecodecs.png_encode(np.ascontiguousarray(image))))


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


def white_level(image: np.ndarray) -> int:
    """Return the value of white: 255 of a uint8 image, 65535 of a uint16 one."""
    return int(np.iinfo(image.dtype).max)


def to_16_bit(image: np.ndarray) -> np.ndarray:
    """Return an image as uint16: every shade exactly as bright as before."""
    return image if image.dtype == np.uint16 else image.astype(np.uint16) * np.uint16(257)  # 65535 / 255


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """Return an image rounded to uint8, for display."""
    return image if image.dtype == np.uint8 else np.round(image / 257).astype(np.uint8)


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) or grey (H, W), uint8, uint16 or float in [0, 1] -> (1, 3, H, W) float32 in [0, 1]."""
    rgb = np.broadcast_to(image[..., np.newaxis], (*image.shape, 3)) if image.ndim == 2 else image
    tensor = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].float()
    return tensor if image.dtype.kind == "f" else tensor / white_level(image)


def to_image(tensor: Tensor, *, like: np.ndarray | None = None) -> np.ndarray:
    """Clamp and round a tensor, half to even.

    Args:
        tensor: (1, 3, H, W) or (3, H, W) in [0, 1].
        like: an image whose type the result gets; if it is grey, the mean of the three channels is taken.

    Returns:
        (H, W, 3) or (H, W); uint8 without `like`.
    """
    dtype = np.dtype(np.uint8) if like is None else like.dtype
    tensor = tensor.detach().reshape(tensor.shape[-3:]).permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    if like is not None and like.ndim == 2:
        tensor = tensor.mean(dim=2)
    array = tensor.clamp(0, 1).mul(np.iinfo(dtype).max).round().cpu().numpy()
    return np.ascontiguousarray(array.astype(dtype))
