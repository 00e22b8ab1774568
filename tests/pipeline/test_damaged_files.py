"""Files that somebody is sent, damaged: every reader reads them, or answers with our own error, which names the file.

A few hundred files; thousands with `pytest tests/pipeline/test_damaged_files.py --hypothesis-profile=thousands`.
"""

import copy
import json
import resource
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from latency import DeviceInfo, LatencyTable, Timing
from pipeline.baselines import build_baseline, save_baseline
from pipeline.checkpoint import load_checkpoint, save_checkpoint, save_weights
from pipeline.config import load_config
from pipeline.data.dnd import read_boxes, read_noisy
from pipeline.data.images import read_image
from pipeline.data.sidd import ValidationBlocks
from pipeline.evaluation.table import ImageRow, Row, Table
from pipeline.experiments.cells import CellRecord, read_identity
from pipeline.experiments.cells import read_records as read_cells
from pipeline.experiments.cells import write_record as write_cell
from pipeline.models import load_denoiser
from pipeline.priors import MIRNet, load_prior, save_prior
from pipeline.records import (
    ARCHITECTURE_COLUMNS,
    CELL_COLUMNS,
    cell_rows,
    read_records,
    write_dataset,
    write_record,
)
from pipeline.run import Run
from pipeline.search_inputs import search_key
from pipeline.study.paper import scale_table
from pipeline.study.selection import architecture_table, read_collection, selection_counts
from pipeline.study.tables import FAMILIES, macs_table
from search_space import Genotype, SearchSpace, build_network, genotype_op_specs, sample_genotype

SPACE = SearchSpace(num_channels=16, num_resolutions=2, num_layers=3, candidate_ops=("conv_d1", "conv_r", "skip"))
IMAGE_SUFFIXES = ("png", "jpg", "tif", "bmp", "webp")
# What stands in place of a sound value: counts far too large, numbers that are none, other types, paths, deep nesting.
WILD = [
    None, True, 0, -1, 3, 2**31, 10**9, 2**63, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "a",
    "../../x", "/etc/passwd", "\x00", "\u2028", "conv_d1", "1e9", [], [[]], [0] * 50, {}, {"a": 1},
    {"low": 0, "high": 10**9},
]  # fmt: skip
# A terabyte that four bytes stand for, and tensors of other types.
WILD_TENSORS = [
    torch.zeros(1).expand(10**6, 10**6), torch.zeros(1).expand(10**6, 3, 3, 3), torch.zeros(0), torch.zeros(()),
    torch.zeros(8, 3, 3, 3, dtype=torch.complex64), torch.zeros(8, 3, 3, 3).to_sparse(),
    torch.zeros(8, 3, 3, 3, device="meta"), torch.ones(8, 3, 3, 3, dtype=torch.bool), torch.zeros(0, 3, 3, 3),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: `write` leaves a sound one, `read` reads it; `values` and `write_values` for plain values."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    values: Callable[[Path], Any] | None = None
    write_values: Callable[[Path, Any], Any] | None = None


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def example_genotype() -> Genotype:
    return sample_genotype(SPACE, generator=torch.Generator().manual_seed(0))


def small_mirnet() -> MIRNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MIRNet(num_channels=8, num_blocks=1)


def example_record(key: str) -> dict[str, Any]:
    genotype = example_genotype()
    return {
        "key": key, "origin": "random", "index": 0, "seed": 0, "genotype_id": genotype.genotype_id,
        "genotype": genotype.to_json(), "varied": "{}", "macs": 1000, "predicted_ms": 1.5, "image_size": 64,
        "candidate_ops": list(SPACE.candidate_ops), "cells": cell_rows(genotype, SPACE, None, size=64),
    }  # fmt: skip


def write_network(path: Path) -> None:
    """Write the weights beside a genotype; `path` is the genotype."""
    genotype = example_genotype()
    genotype.save(path)
    save_weights(path.with_name("model.safetensors"), build_network(genotype).state_dict())


def write_table(path: Path) -> None:
    device = DeviceInfo.current(torch.device("cpu"), num_threads=1)
    timing = Timing(median_ms=1.5, iqr_ms=0.1, num_repeats=20)
    specs = [spec for part in genotype_op_specs(example_genotype(), height=16, width=16) for spec in part]
    LatencyTable(device, dict.fromkeys(specs, timing)).save(path)


def table_values(path: Path) -> Any:
    table = pq.read_table(path)
    return {"rows": table.to_pylist()[:4], "metadata": json.loads(table.schema.metadata[b"latency_table"])}


def write_table_values(path: Path, values: Any) -> None:
    """Write what Parquet can hold of damaged rows."""
    assume(isinstance(values, dict) and isinstance(values.get("rows"), list))
    try:
        table = pa.Table.from_pylist(values["rows"])
        metadata = {b"latency_table": json.dumps(values.get("metadata")).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
        assume(False)


def count_everything(path: Path) -> None:
    """Read a data set as a study does, up to intervals and tests."""
    collection = read_collection(path.parent, margin_db=None)
    selection_counts(collection)
    architecture_table(collection)
    macs_table(collection)
    scale_table(collection, device_name=None)
    for family in FAMILIES:
        family.count(collection)


def write_rows(path: Path, schema: pa.Schema, rows: Any) -> None:
    """Write what the columns of a data set can hold of damaged rows."""
    assume(isinstance(rows, list) and all(isinstance(row, dict) for row in rows))
    try:
        table = pa.Table.from_pylist(rows, schema.with_metadata({"schema_version": "1"}))
        pq.write_table(table, path)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
        assume(False)


def safetensors_header(path: Path) -> Any:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def write_safetensors_header(path: Path, header: Any) -> None:
    """Put another header before the numbers that the file has."""
    content = path.read_bytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :])


def baseline_record(path: Path) -> Any:
    return json.loads(safetensors_header(path)["__metadata__"]["baseline"])


def write_baseline_record(path: Path, record: Any) -> None:
    header = safetensors_header(path)
    header["__metadata__"]["baseline"] = json.dumps(record)
    write_safetensors_header(path, header)


def write_image(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_deep_image(path: Path) -> None:
    """Write 16 bits per channel; a TIFF compressed as its name says, in tiles."""
    pixels = np.random.default_rng(0).integers(0, 65536, (24, 20, 3), dtype=np.uint16)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        compression = path.stem.partition(".")[2]
        tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, predictor=True, tile=(16, 16))


def write_validation_blocks(path: Path) -> None:
    savemat(path, {path.stem: np.random.default_rng(0).integers(0, 256, (2, 2, 4, 4, 3), dtype=np.uint8)},
            do_compression=path.parent.name == "compressed")  # fmt: skip


def write_dnd_boxes(path: Path) -> None:
    with h5py.File(path, "w") as file:
        references = np.empty((1, 50), dtype=h5py.ref_dtype)
        for index in range(50):
            file[f"box{index}"] = np.arange(80.0).reshape(4, 20)
            references[0, index] = file[f"box{index}"].ref
        file["info/boundingboxes"] = references


def write_dnd_image(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("InoisySRGB", data=np.random.default_rng(0).random((3, 9, 8)), chunks=(3, 4, 4),
                            compression="gzip")  # fmt: skip


def write_cell_record(path: Path) -> None:
    write_cell(path.parents[1], CellRecord(stage="run", variant="slow", seed=0, values={"psnr_db": 30.5, "ssim": 0.9},
                                           started_at=1.5e9, seconds=2.0, device="abacus"))  # fmt: skip


def write_evaluation(path: Path) -> None:
    row = Row(model="noisy", dataset="Set5", noise="awgn:25", num_images=5, psnr_db=20.2, psnr_unrounded_db=20.1,
              ssim=0.5, ssim_3d=0.5, num_parameters=None, macs=None, seconds_per_image=0.1, seconds_per_megapixel=0.4,
              peak_memory_mb=None, device="abacus", num_threads=1, fingerprint="ab12")  # fmt: skip
    image = ImageRow(model="noisy", dataset="Set5", noise="awgn:25", image="bird", height=288, width=288, psnr_db=20.2,
                     psnr_unrounded_db=20.1, ssim=0.5, ssim_3d=0.5, seconds=0.1)  # fmt: skip
    Table(path.parent).add(row, [image])


def run_in(folder: Path) -> Run:
    return Run(config=load_config("tiny"), folder=folder, space=SPACE, prior=small_mirnet(), training_images={},
               validation_images={})  # fmt: skip


def write_search(path: Path) -> None:
    part = {"weights": {"w": torch.zeros(3)}, "probabilities": {"alpha": [[0.5, 0.5]]}, "entropies": {"alpha": 1.0},
            "num_bad_steps": 0}  # fmt: skip
    save_checkpoint(path, {"key": search_key(load_config("tiny")), "genotype": example_genotype().to_json(),
                           "parts": [part] * 3})  # fmt: skip


def torch_values(path: Path) -> Any:
    return torch.load(path, weights_only=True)


KINDS = [
    Kind(name="genotype.json", write=lambda path: example_genotype().save(path), read=Genotype.load,
         values=read_json, write_values=write_json),
    Kind(name="network/genotype.json", write=write_network, read=lambda path: load_denoiser(path.parent),
         values=read_json, write_values=write_json),
    Kind(name="table.parquet", write=write_table, read=lambda path: LatencyTable.load(path, expected=None),
         values=table_values, write_values=write_table_values),
    Kind(name="configuration.yaml", write=lambda path: load_config("tiny").save(path),
         read=lambda path: load_config(str(path)), values=lambda path: yaml.safe_load(path.read_text()),
         write_values=lambda path, values: path.write_text(yaml.safe_dump(values))),
    Kind(name="checkpoint.pt", write=lambda path: save_checkpoint(path, {"epoch": 3, "w": {"a": torch.arange(64.0)}}),
         read=load_checkpoint),
    Kind(name="prior.pth", write=lambda path: save_checkpoint(path, {"state_dict": small_mirnet().state_dict()}),
         read=load_prior, values=torch_values, write_values=save_checkpoint),
    Kind(name="prior.safetensors", write=lambda path: save_prior(small_mirnet(), path), read=load_denoiser,
         values=safetensors_header, write_values=write_safetensors_header),
    Kind(name="baseline.safetensors",
         write=lambda path: save_baseline(build_baseline("dncnn", num_channels=4, num_layers=3), path),
         read=load_denoiser, values=baseline_record, write_values=write_baseline_record),
    Kind(name="records/random-0.json", write=lambda path: write_record(path.parent, example_record("random-0")),
         read=lambda path: read_records(path.parent), values=read_json, write_values=write_json),
    Kind(name="dataset/architectures.parquet",
         write=lambda path: write_dataset(path.parent, [example_record("random-0")]), read=count_everything,
         values=lambda path: pq.read_table(path).to_pylist(maps_as_pydicts="strict"),
         write_values=lambda path, rows: write_rows(path, ARCHITECTURE_COLUMNS, rows)),
    Kind(name="dataset/cells.parquet", write=lambda path: write_dataset(path.parent, [example_record("random-0")]),
         read=count_everything, values=lambda path: pq.read_table(path).to_pylist(maps_as_pydicts="strict"),
         write_values=lambda path, rows: write_rows(path, CELL_COLUMNS, rows)),
    *(Kind(name=f"{folder}/ValidationGtBlocksSrgb.mat", write=write_validation_blocks,
           read=lambda path: ValidationBlocks(path).read("01/01")) for folder in ("plain", "compressed")),
    Kind(name="dnd/info.mat", write=write_dnd_boxes, read=lambda path: read_boxes(path.parent)),
    Kind(name="dnd/images_srgb/0001.mat", write=write_dnd_image, read=lambda path: read_noisy(path.parents[1], 0)),
    Kind(name="experiment/run/slow-seed0.json", write=write_cell_record, read=lambda path: read_cells(path.parents[1]),
         values=read_json, write_values=write_json),
    Kind(name="experiment/experiment.json", write=lambda path: write_json(path, {"experiment": "levels", "hash": "a"}),
         read=lambda path: read_identity(path.parent), values=read_json, write_values=write_json),
    Kind(name="search.pt", write=write_search, read=lambda path: run_in(path.parent).finished_search(),
         values=torch_values, write_values=save_checkpoint),
    Kind(name="evaluation/evaluation.csv", write=write_evaluation, read=lambda path: Table(path.parent)),
    *(Kind(name=f"image.{suffix}", write=write_image, read=read_image) for suffix in IMAGE_SUFFIXES),
    *(Kind(name=f"deep.{suffix}", write=write_deep_image, read=read_image) for suffix in ("png", "lzw.tif", "zstd.tif",
      "deflate.tif")),
]  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Flip, cut off, take out, put in and overwrite; mostly near the ends, where headers and footers are."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        if not damaged:
            break
        last = len(damaged) - 1
        near = st.integers(0, min(last, 300)) | st.integers(0, min(last, 300)).map(lambda n, last=last: last - n)
        position = draw(near | st.integers(0, last))
        kind = draw(st.sampled_from(["flip", "cut", "remove", "insert", "overwrite"]))
        if kind == "flip":
            damaged[position] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del damaged[position:]
        elif kind == "remove":
            del damaged[position : position + draw(st.integers(1, 64))]
        elif kind == "insert":
            damaged[position:position] = draw(st.binary(min_size=1, max_size=16))
        else:
            damaged[position : position + 8] = draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f"]))
    return bytes(damaged)


@st.composite
def damaged_values(draw: st.DrawFn, values: Any, *, wild: list[Any]) -> Any:
    """Put wild values in place of sound ones, drop some, and add some that do not belong there."""
    root = {"": copy.deepcopy(values)}
    for _ in range(draw(st.integers(1, 2))):
        node: Any = root
        key: Any = ""
        while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 9)) > 0:
            node = node[key]
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "repeat"]))
        if kind == "drop" and node is not root:
            del node[key]
        elif kind == "add" and isinstance(node, dict) and node is not root:
            node[draw(st.text(max_size=8))] = copy.deepcopy(draw(st.sampled_from(wild)))
        elif kind == "repeat" and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = copy.deepcopy(draw(st.sampled_from(wild)))
    return root[""]


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Let an allocation of gigabytes fail instead of succeeding by luck."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound files of every kind, by name."""
    paths = {kind.name: tmp_path_factory.mktemp("sound") / kind.name for kind in KINDS}
    for kind in KINDS:
        paths[kind.name].parent.mkdir(parents=True, exist_ok=True)
        kind.write(paths[kind.name])
        kind.read(paths[kind.name])
    return paths


def read_damaged(kind: Kind, path: Path) -> None:
    """Read the file; raise unless the reader knows it or refuses it in our words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries may warn of what is odd before they refuse it
            kind.read(path)
    except (ValueError, FileNotFoundError) as error:
        is_ours = type(error) in (ValueError, FileNotFoundError) or type(error).__module__.startswith("pipeline.")
        if not is_ours or path.name not in str(error):
            raise AssertionError(f"the error does not name {path.name}: {error!r}") from error


MANY = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@MANY
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(kind: Kind, sound: dict[str, Path], data: st.DataObject) -> None:
    path = sound[kind.name]
    content = path.read_bytes()
    path.write_bytes(data.draw(damaged_bytes(content)))
    try:
        read_damaged(kind, path)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values], ids=lambda kind: kind.name)
@MANY
@given(data=st.data())
def test_wild_values_are_read_or_refused(kind: Kind, sound: dict[str, Path], data: st.DataObject) -> None:
    assert kind.values is not None and kind.write_values is not None
    path = sound[kind.name]
    content = path.read_bytes()
    wild = WILD + WILD_TENSORS if path.suffix in (".pth", ".pt") else WILD
    values = data.draw(damaged_values(kind.values(path), wild=wild))
    try:
        kind.write_values(path, values)
        read_damaged(kind, path)
    finally:
        path.write_bytes(content)
