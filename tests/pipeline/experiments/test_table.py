"""Mean, spread and the paper's figure."""

import numpy as np
import pytest

from pipeline.experiments import Experiment
from pipeline.experiments.claims import judge
from pipeline.experiments.table import long_table, markdown_findings, markdown_table

VALUES = {
    0: {"slow": {"psnr_db": 30.0, "num_parameters": 2000}, "fast": {"psnr_db": 29.0}},
    1: {"slow": {"psnr_db": 30.4, "num_parameters": 2000}, "fast": {"psnr_db": 29.1}},
    2: {"slow": {"psnr_db": 30.5, "num_parameters": 2000}, "fast": {"psnr_db": 30.2}},
}


def test_the_long_table_has_mean_and_sample_standard_deviation(two_variants: Experiment) -> None:
    table = long_table(two_variants, VALUES).set_index(["variant", "quantity"])
    row = table.loc[("slow", "psnr_db")]
    assert row["mean"] == pytest.approx(30.3)
    assert row["std"] == pytest.approx(np.std([30.0, 30.4, 30.5], ddof=1))
    assert (row["min"], row["max"], row["num_seeds"], row["paper"]) == (30.0, 30.5, 3, 30.5)
    assert ("fast", "num_parameters") not in table.index  # this variant has no such number


def test_the_markdown_table_shows_spread_gaps_and_the_papers_figure(two_variants: Experiment) -> None:
    lines = markdown_table(two_variants, long_table(two_variants, VALUES)).splitlines()
    assert lines == [
        "|  | PSNR, dB | paper | k |",
        "| --- | ---: | ---: | ---: |",
        "| the slow one | 30.30 ± 0.26 | 30.5 | 2.0 |",
        "| B | 29.43 ± 0.67 | – | – |",
    ]


def test_one_seed_shows_no_spread(two_variants: Experiment) -> None:
    text = markdown_table(two_variants, long_table(two_variants, {0: VALUES[0]}))
    assert "| the slow one | 30.00 | 30.5 | 2.0 |" in text


def test_a_sentence_says_what_became_of_the_finding(two_variants: Experiment) -> None:
    text = markdown_findings([judge(claim, VALUES) for claim in two_variants.claims])
    assert text.startswith("**The paper's finding is not decided** here (claims: 1 not decided).")
    assert "- *not decided*: slow wins: +0.87 dB, 95 % interval −0.41 to +2.14 (paper +0.50)" in text
