"""The rows of an evaluation and the files they are kept in: `evaluation.csv`, `images.csv`, `evaluation.md`.

Written by `pipeline.evaluation.command` after every row, so that nothing is lost when a later model fails.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ops.files import write_atomically
from pipeline.markdown import GAP, markdown_row

TABLE_FILE, IMAGES_FILE, PAGE_FILE = "evaluation.csv", "images.csv", "evaluation.md"
_Record = TypeVar("_Record", "Row", "ImageRow")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on one set with one noise; empty where a number does not exist for this model.

    Attributes:
        model: as the user gave it.
        dataset: name of the set.
        noise: name of the noise.
        num_images: of the set.
        psnr_db: mean over the images, each clipped and rounded to the bits of its file.
        psnr_unrounded_db: mean over the images, clipped and not rounded.
        ssim: mean of the 2-D Gaussian SSIM of the rounded images.
        ssim_3d: mean of MATLAB's SSIM, which blurs across colours too, of the clipped images before rounding: the one
            of the papers on SIDD and DND.
        num_parameters: learned numbers.
        macs: multiply-adds at 256x256.
        seconds_per_image: mean measured wall time.
        seconds_per_megapixel: total wall time by total pixels.
        peak_memory_mb: weights and feature maps alive at once at 256x256, in 1e6 bytes.
        device: that the model ran on.
        num_threads: CPU threads.
        fingerprint: of model, set and settings; a row of another one is measured again.
    """

    model: str
    dataset: str
    noise: str
    num_images: int
    psnr_db: float
    psnr_unrounded_db: float
    ssim: float
    ssim_3d: float
    num_parameters: int | None
    macs: int | None
    seconds_per_image: float
    seconds_per_megapixel: float
    peak_memory_mb: float | None
    device: str
    num_threads: int
    fingerprint: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What the row is about."""
        return self.model, self.dataset, self.noise


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image of a row of the table; the numbers mean the same."""

    model: str
    dataset: str
    noise: str
    image: str
    height: int
    width: int
    psnr_db: float
    psnr_unrounded_db: float
    ssim: float
    ssim_3d: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, str]:
        """The row that the image belongs to."""
        return self.model, self.dataset, self.noise


class Table:
    """Rows in the order they came, in memory and, with a folder, on disk.

    Args:
        folder: with the files of an earlier evaluation, or empty; None keeps nothing.

    Raises:
        ValueError: a file of the folder is damaged or has other columns.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self.images: list[ImageRow] = []
        if folder is not None and (folder / TABLE_FILE).exists():
            self.rows = _read(folder / TABLE_FILE, Row)
            whole = {row.key for row in self.rows}
            if (folder / IMAGES_FILE).exists():
                self.images = [image for image in _read(folder / IMAGES_FILE, ImageRow) if image.key in whole]

    def find(self, key: tuple[str, str, str], fingerprint: str) -> Row | None:
        """Return the row about `key` if it was measured with the same model, set and settings."""
        return next((row for row in self.rows if row.key == key and row.fingerprint == fingerprint), None)

    def add(self, row: Row, images: Sequence[ImageRow]) -> None:
        """Add a row, in place of an older one about the same, and write the files."""
        self.rows = [other for other in self.rows if other.key != row.key] + [row]
        self.images = [other for other in self.images if other.key != row.key] + list(images)
        if self.folder is not None:
            write_atomically(self.folder / IMAGES_FILE, _csv(self.images, ImageRow))  # first: no row without its images
            write_atomically(self.folder / TABLE_FILE, _csv(self.rows, Row))
            write_atomically(self.folder / PAGE_FILE, markdown(self.rows))


def markdown(rows: Sequence[Row]) -> str:
    """Return one table per set and noise, each model a line, in the form of Tables IV and V of arXiv 2502.13359."""
    titles = ("model", "PSNR (rounded), dB", "PSNR (unrounded), dB", "SSIM", "SSIM (3-D)", "parameters, M",
              "MACs at 256x256, G", "s / image", "s / megapixel", "peak memory at 256x256, MB")  # fmt: skip
    blocks = []
    for dataset, noise in dict.fromkeys((row.dataset, row.noise) for row in rows):
        group = [row for row in rows if (row.dataset, row.noise) == (dataset, noise)]
        lines = [f"### {dataset}, {noise} ({group[0].num_images} images)", "", markdown_row(titles)]
        lines.append(markdown_row(["---"] + ["---:"] * (len(titles) - 1)))
        for row in group:
            lines.append(
                markdown_row([
                    row.model, f"{row.psnr_db:.2f}", f"{row.psnr_unrounded_db:.2f}", f"{row.ssim:.4f}",
                    f"{row.ssim_3d:.4f}", _number(row.num_parameters, 1e6, 3), _number(row.macs, 1e9, 2),
                    f"{row.seconds_per_image:.3f}", f"{row.seconds_per_megapixel:.3f}",
                    _number(row.peak_memory_mb, 1, 1),
                ])
            )  # fmt: skip
        machines = sorted({f"{row.device} (CPU threads: {row.num_threads})" for row in group})
        lines += ["", f"Measured on {'; '.join(machines)}."]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _number(value: float | None, scale: float, digits: int) -> str:
    return GAP if value is None else f"{value / scale:.{digits}f}"


def _csv(records: Sequence[Any], kind: type) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)  # None becomes an empty cell
    return text.getvalue()


def _read(path: Path, kind: type[_Record]) -> list[_Record]:
    types = get_type_hints(kind)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != list(types):
                raise ValueError(f"it must have the columns {', '.join(types)}, got {reader.fieldnames}")
            return [_parse_line(line, kind, types) for line in reader]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _parse_line(line: dict[str, str | None], kind: type[_Record], types: dict[str, Any]) -> _Record:
    if len(line) != len(types) or None in line.values():  # more cells than columns stand under None
        raise ValueError(f"a line of it has not {len(types)} cells")
    return kind(**{name: _parse(text or "", types[name]) for name, text in line.items()})


def _parse(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind in (int, int | None):
        return int(text) if text else None
    return float(text) if text else None
