"""The paper's own numbers beside those of a collection, and how the two differ in scale.

Called by `pipeline.study.analyze`. "Denoising Designs-inherited Search Framework for Image Denoising", arXiv
2502.13359, Section IV-F.
"""

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipeline.study.selection import Collection, members
from pipeline.study.tables import SPECIAL_OPERATORS

# Family, part, operator, the paper's rate, where it says so. Figs. 10, 11 and 13 print no other numbers.
_NUMBERS = (
    ("operator_rates", 0, "skip", 0.10, "text"),
    ("operator_rates", 1, "skip", 0.30, "text"),
    ("operator_rates", 2, "skip", 0.30, "text"),
    ("special_operator_shares", 0, "swin", 0.5469, "Fig. 12"),
    ("special_operator_shares", 1, "swin", 0.25, "text: nearly 25 %"),
    ("special_operator_shares", 2, "swin", 0.25, "text: nearly 25 %"),
    ("special_operator_shares", 0, "hin", 0.4219, "Fig. 12"),
    ("special_operator_shares", 0, "ib", 0.0312, "Fig. 12"),
)
_NAMES = {
    "operator_rates": "rate of {}",
    "special_operator_shares": "share of {} among " + ", ".join(SPECIAL_OPERATORS),
}


def paper_table(rate_tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put the paper's rates beside those of all searched architectures and of the random control.

    Args:
        rate_tables: by name of the family, as `tables.rate_table` returns them.

    Returns:
        One row per number of the paper; `covers_paper`: the interval contains it, missing where there is no
        interval; NaN where the operator is not on offer or no cell has it.
    """
    rows = []
    for family, part, operator, value, source in _NUMBERS:
        table = rate_tables[family]
        own = table[(table["part"] == part) & (table["operator"] == operator)].set_index("group")
        found = own.loc["searched"] if len(own) else pd.Series(np.nan, index=["rate", "low", "high"])
        rows.append({
            "quantity": _NAMES[family].format(operator), "part": part, "paper": value, "source": source,
            "searched": found["rate"], "low": found["low"], "high": found["high"],
            "covers_paper": pd.NA if pd.isna(found["low"]) else bool(found["low"] <= value <= found["high"]),
            "random": own["rate"].get("random", np.nan),
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"covers_paper": "boolean"})


def scale_table(collection: Collection, *, device_name: str | None) -> pd.DataFrame:
    """Say what the paper's study and this one were made with.

    Args:
        collection: the architectures.
        device_name: of the machine that searched and timed; the data set does not know it.
    """
    records = collection.selected
    searched = records[members(records, "searched")]
    channels = sorted({json.loads(genotype)["num_channels"] for genotype in records["genotype"]})
    rows = [
        ("base channels C", "64", _listed(channels)),
        ("searched architectures in the statistics", "200", str(len(searched))),
        ("random architectures beside them", "none", str(len(records) - len(searched))),
        ("candidate operations", "8", _listed(sorted({len(offered) for offered in records["candidate_ops"]}))),
        ("complexity regularised by", "inference time", _listed(sorted(searched["cost"].dropna().unique()))),
        ("image size of the multiply-adds, pixels", "not stated", _listed(sorted(records["image_size"].unique()))),
        ("machine", "GPUs (1080 Ti for the search)", device_name or "not recorded"),
        ("selection", "similar validation accuracy, no rule", _rule(collection.margin_db)),
    ]
    return pd.DataFrame(rows, columns=["", "paper", "this study"])


def _rule(margin_db: float | None) -> str:
    if margin_db is None:
        return "none"
    return f"at most {margin_db:g} dB below the best quartile of its group"


def _listed(values: list) -> str:
    return ", ".join(map(str, values)) or "none"
