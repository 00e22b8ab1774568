"""The architectures of a study: read, grouped, and those of similar validation accuracy selected.

Called by `pipeline.study.analyze`. "Denoising Designs-inherited Search Framework for Image Denoising", arXiv
2502.13359, Section IV-F: "We select 200 searched architectures with similar validation accuracy"; it gives no rule.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.records import ARCHITECTURES_FILE, CELLS_FILE, ORIGINS, PARTS, read_dataset

# The paper's large models: lambda of Eq. (13) is 0. The small ones: above 0. Random ones are the control.
SIZE_GROUPS = ("large", "small", "random")
GROUPS = ("searched", *SIZE_GROUPS)  # searched: large and small together
DEFAULT_MARGIN_DB = 0.5
_QUANTILE = 0.75  # lower bound of the best quartile
_MAX_LAYERS = 64  # of a search space


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a study is about.

    Attributes:
        architectures: all records, indexed by key, with `group`, `threshold_db` and `is_selected`.
        cells: of the selected architectures, those that the derivation dropped included.
        operators: on offer to any of the architectures.
        margin_db: of the selection; None: all are selected.
    """

    architectures: pd.DataFrame
    cells: pd.DataFrame
    operators: tuple[str, ...]
    margin_db: float | None

    @property
    def selected(self) -> pd.DataFrame:
        """The selected architectures."""
        return self.architectures[self.architectures["is_selected"]]

    def keys(self, group: str) -> pd.Index:
        """Return the keys of the selected architectures of one of GROUPS."""
        return self.selected.index[members(self.selected, group)]


def read_collection(folder: Path, *, margin_db: float | None = DEFAULT_MARGIN_DB) -> Collection:
    """Read a data set and select the architectures of similar validation accuracy.

    The rule: within each group (large, small, random) take the lower bound of the best quartile of the PSNR with
    shared weights, and keep what is at most `margin_db` below it. Groups are judged apart, since small and random
    networks are worse than large ones: one bound for all would leave hardly any of them, and with them nothing to
    compare. Records without that PSNR are kept only without a margin. Equal genotypes are all kept: two searches that
    end at the same network are two observations.

    Args:
        folder: holds `architectures.parquet` and `cells.parquet`.
        margin_db: in dB, at least 0; None keeps every record.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the data set cannot be read or is empty, `margin_db` is negative or not a finite number, or there is
            a margin and no record has that PSNR.
    """
    if margin_db is not None and (
        isinstance(margin_db, bool) or not isinstance(margin_db, int | float) or not 0 <= margin_db < math.inf
    ):
        raise ValueError(f"`margin_db` must be a finite number of at least 0 or None, got {margin_db!r}")
    architectures, cells = (
        _sound(folder / name, table, check)
        for name, table, check in zip(
            (ARCHITECTURES_FILE, CELLS_FILE), read_dataset(folder), (_check_architectures, _check_cells), strict=True
        )
    )
    architectures = _grouped(architectures.set_index("key"))
    threshold = pd.Series(-np.inf, index=architectures.index)
    if margin_db is not None:
        psnr = architectures.groupby("group")["proxy_psnr_db"]
        threshold = psnr.transform("quantile", _QUANTILE) - margin_db
    is_selected = (architectures["proxy_psnr_db"] >= threshold) | (margin_db is None)
    if not is_selected.any():
        raise ValueError(f"no record of {folder} has a `proxy_psnr_db`; `margin_db` must be None, got {margin_db}")
    architectures = architectures.assign(threshold_db=threshold, is_selected=is_selected)
    names = dict.fromkeys(name for offered in architectures["candidate_ops"] for name in offered)
    return Collection(
        architectures=architectures,
        cells=cells[cells["key"].isin(architectures.index[is_selected])],
        operators=tuple(names),
        margin_db=margin_db,
    )


def members(architectures: pd.DataFrame, group: str) -> np.ndarray:
    """Tell which rows belong to one of GROUPS."""
    groups = ("large", "small") if group == "searched" else (group,)
    return architectures["group"].isin(groups).to_numpy()


def selection_counts(collection: Collection) -> pd.DataFrame:
    """Count records and distinct genotypes per group, before and after the selection."""
    rows = []
    for group in GROUPS:
        records = collection.architectures[members(collection.architectures, group)]
        selected = records[records["is_selected"]]
        thresholds = records["threshold_db"].unique()
        kinds = records["weights"].value_counts().sort_index()
        strengths = sorted(records["complexity_weight"].dropna().unique())
        rows.append({
            "group": group,
            "records": len(records),
            "genotypes": records["genotype_id"].nunique(),
            "without_psnr": int(records["proxy_psnr_db"].isna().sum()),
            "threshold_db": thresholds[0] if len(thresholds) == 1 and np.isfinite(thresholds[0]) else np.nan,
            "selected": len(selected),
            "selected_genotypes": selected["genotype_id"].nunique(),
            "weights": ", ".join(f"{kind} {number}" for kind, number in kinds.items()),
            "complexity_weights": ", ".join(f"{value:g}" for value in strengths),
        })  # fmt: skip
    return pd.DataFrame(rows)


def architecture_table(collection: Collection) -> pd.DataFrame:
    """List all records with quality and cost; `is_non_dominated`: none is as good and as fast and better in one."""
    columns = ["origin", "index", "group", "genotype_id", "complexity_weight", "proxy_psnr_db", "predicted_ms", "macs",
               "num_parameters", "is_selected"]  # fmt: skip
    table = collection.architectures[columns].reset_index()
    psnr, cost = table["proxy_psnr_db"].to_numpy(), table["predicted_ms"].to_numpy()
    as_good = (psnr[None] >= psnr[:, None]) & (cost[None] <= cost[:, None])  # (A, A): is [i, j] j as good as i
    better = (psnr[None] > psnr[:, None]) | (cost[None] < cost[:, None])
    is_known = table[["proxy_psnr_db", "predicted_ms"]].notna().all(axis=1)
    return table.assign(is_non_dominated=is_known.to_numpy() & ~np.any(as_good & better, axis=1))


def _sound(path: Path, table: pa.Table, check: Callable[[pd.DataFrame], None]) -> pd.DataFrame:
    """Return the rows that `check` lets through; every error names the file."""
    try:
        rows = table.to_pandas(maps_as_pydicts="strict")
        if rows.empty:
            raise ValueError("it has no rows")
        check(rows)
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return rows


def _check_architectures(rows: pd.DataFrame) -> None:
    _require(rows, ("key", "origin", "index", "genotype_id", "genotype", "candidate_ops", "image_size"))
    if not rows["key"].is_unique:
        raise ValueError("two rows have the same `key`")
    if not rows["origin"].isin(ORIGINS).all():
        raise ValueError(f"`origin` must be one of {', '.join(ORIGINS)}")
    if any(name is None for offered in rows["candidate_ops"] for name in offered):
        raise ValueError("an operator of `candidate_ops` has no name")
    for genotype in rows["genotype"]:
        try:
            is_genotype = type(json.loads(genotype)["num_channels"]) is int
        except (ValueError, TypeError, KeyError, RecursionError):
            is_genotype = False
        if not is_genotype:
            raise ValueError(f"`genotype` must be the JSON of a genotype, got {genotype[:60]!r}")


def _check_cells(rows: pd.DataFrame) -> None:
    place = ["key", "part", "resolution", "layer"]
    _require(rows, (*place, "reachable"))
    _require(rows[rows["reachable"]], ("operator", "out_width", "dense_layers", "num_dense_options"))
    if rows.duplicated(place).any():
        raise ValueError("two rows describe the same cell")
    if not rows["part"].isin(PARTS).all():
        raise ValueError(f"`part` must be one of {', '.join(map(str, PARTS))}")
    if not ((rows["resolution"] >= 0) & (rows["resolution"] < rows["layer"]) & (rows["layer"] <= _MAX_LAYERS)).all():
        raise ValueError(f"a cell must have 0 <= `resolution` < `layer` <= {_MAX_LAYERS}")


def _require(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if rows[column].isna().any():
            raise ValueError(f"a row has no `{column}`")


def _grouped(architectures: pd.DataFrame) -> pd.DataFrame:
    is_random = architectures["origin"] == "random"
    group = np.where(is_random, "random", np.where(architectures["complexity_weight"] > 0, "small", "large"))
    return architectures.assign(group=group)
