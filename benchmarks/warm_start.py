"""What does warm-starting searches from shared supernets do to the preferences that are found?

    python benchmarks/warm_start.py COLLECTION --num 30

Repeats the first searches of a finished collection independently: same seeds and settings, but every search trains its
own supernets from random weights (four epochs of weight steps first). Pairs differ in that alone. For every operator,
direction and width the mean rate of both, the mean difference over the pairs with a bootstrap interval, and Wilcoxon's
signed-rank test with Benjamini and Hochberg's correction; beside them how much two searches of *different* pairs agree,
and two of the same pair. The independent collection is kept in `--output`; the same command goes on where it was.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from common import print_table, write_result
from scipy import stats

from latency import keep_freed_memory
from pipeline.cluster import ray_session
from pipeline.collect import claim_collection, collect
from pipeline.config import load_config
from pipeline.records import Record, read_records
from pipeline.run import open_run

LEVELS = ("operator", "out_width", "direction")


def rates(record: Record) -> pd.Series:
    """Return the share of every operator, width and kept direction among the reachable cells of one architecture."""
    cells = pd.DataFrame([cell for cell in record["cells"] if cell["reachable"]])
    shares = {}
    for level in LEVELS:
        values = cells["resolution_pathways"].explode() if level == "direction" else cells[level]
        for name, share in values.value_counts(normalize=True).items():
            shares[f"{level} {name}"] = share
    return pd.Series(shares)


def agreement(first: Record, second: Record) -> float:
    """Return the share of cells, reachable in both, that have the same operator."""
    ops = [
        {(cell["part"], cell["resolution"], cell["layer"]): cell["operator"] for cell in record["cells"]
         if cell["reachable"]}
        for record in (first, second)
    ]  # fmt: skip
    shared = ops[0].keys() & ops[1].keys()
    return float(np.mean([ops[0][key] == ops[1][key] for key in shared])) if shared else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="folder of a warm-started collection")
    parser.add_argument("--num", type=int, default=30, help="pairs")
    parser.add_argument("--output", type=Path, required=True, help="folder for the independent collection")
    options = parser.parse_args()
    keep_freed_memory()
    warm = [r for r in read_records(options.collection / "records") if r["origin"] == "searched"][: options.num]
    config = load_config(str(options.collection / "config.yaml"))
    config = config.with_settings(
        {
            "output": str(options.output),
            "collect.warm_start": False,
            "collect.supernets": str(options.collection.absolute()),
            "latency.table": str((options.collection / "latency.parquet").absolute()),
            "search.num_epochs": 3 * config.search.num_epochs,
            "search.warmup_share": 2 / 3,
        }
    )
    run = open_run(config, progress=lambda stage, done, total: print(stage, done, total, flush=True))
    claim_collection(run.folder, config)
    with ray_session(config.ray):
        own = collect(run, num_searched=len(warm), num_random=0)
    assert all(
        json.loads(a["varied"]) == json.loads(b["varied"]) and a["seed"] == b["seed"]
        for a, b in zip(warm, own, strict=True)
    ), "pairs must share seed and settings"
    tables = [pd.DataFrame([rates(record) for record in records]).fillna(0.0) for records in (warm, own)]
    names = sorted(set(tables[0]) | set(tables[1]))
    tables = [table.reindex(columns=names, fill_value=0.0) for table in tables]
    difference = (tables[0] - tables[1]).to_numpy()
    interval = stats.bootstrap(
        (difference,), np.mean, axis=0, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rates that are equal in all pairs
        p_values = np.nan_to_num(stats.wilcoxon(difference, axis=0).pvalue, nan=1.0)
    corrected = stats.false_discovery_control(p_values)
    pairs = len(warm)
    same = [agreement(a, b) for a, b in zip(warm, own, strict=True)]
    other = [agreement(warm[i], own[(i + 1) % pairs]) for i in range(pairs)]
    rows = [
        [name, f"{tables[0][name].mean():.3f}", f"{tables[1][name].mean():.3f}",
         f"{difference[:, i].mean():+.3f} [{interval.low[i]:+.3f}, {interval.high[i]:+.3f}]", f"{corrected[i]:.3f}"]
        for i, name in enumerate(names)
    ]  # fmt: skip
    print_table(f"{pairs} pairs: warm start against independent searches",
                ["rate of", "warm", "independent", "difference [95 %]", "corrected p"], rows)  # fmt: skip
    print(f"same operator in a cell: {np.nanmean(same):.3f} within pairs, {np.nanmean(other):.3f} between pairs")
    result = {
        "num_pairs": pairs,
        "rates": {name: {"warm": float(tables[0][name].mean()), "independent": float(tables[1][name].mean()),
                         "difference": float(difference[:, i].mean()),
                         "interval": [float(interval.low[i]), float(interval.high[i])],
                         "corrected_p": float(corrected[i])} for i, name in enumerate(names)},
        "operator_agreement_within_pairs": float(np.nanmean(same)),
        "operator_agreement_between_pairs": float(np.nanmean(other)),
        "mean_predicted_ms": {"warm": float(np.mean([r["predicted_ms"] for r in warm])),
                              "independent": float(np.mean([r["predicted_ms"] for r in own]))},
        "mean_own_psnr_db": {"warm": float(np.mean([r["own_psnr_db"] for r in warm])),
                             "independent": float(np.mean([r["own_psnr_db"] for r in own]))},
    }  # fmt: skip
    print(write_result("warm_start", result, seeds=[record["seed"] for record in warm], num_threads=1))


if __name__ == "__main__":
    main()
