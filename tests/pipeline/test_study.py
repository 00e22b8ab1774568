import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.records import cell_rows, write_dataset
from pipeline.study import Answer, Study, analyze, guidelines
from pipeline.study.estimates import Bootstrap, Counts, compare, correct, rates
from pipeline.study.guidelines import answer_guidelines, claim_table
from pipeline.study.selection import architecture_table, read_collection, selection_counts
from pipeline.study.tables import FAMILIES, comparison_table, macs_counts, operator_counts, pathway_counts, rate_table
from search_space import DEFAULT_OPS, DIRECTIONS, WIDTHS, Genotype, SearchSpace, sample_part

EQUAL = dict.fromkeys(DEFAULT_OPS, 1.0)
FRONT = EQUAL | {"swin": 6.0, "conv_d3": 3.0}  # 6/15 and 3/15
REAR = EQUAL | {"skip": 3.0}
BOOTSTRAP = Bootstrap(num_resamples=500)


def make_records(
    number: int, *, seed: int, origin: str = "searched", op_weights=(EQUAL, EQUAL, EQUAL), down=None, **values
) -> list[dict]:
    """Draw `number` records; `down` adds to the logit of the down-sampled input of the operators it names."""
    generator = torch.Generator().manual_seed(seed)
    space = SearchSpace(num_channels=16, candidate_ops=tuple(op_weights[0]))
    return [
        make_record(space, index, generator, origin=origin, op_weights=op_weights, down=down or {}, values=values)
        for index in range(number)
    ]


def make_record(space, index, generator, *, origin, op_weights, down, values) -> dict:
    parts = tuple(sample_part(space, generator=generator, op_weights=weights) for weights in op_weights)
    genotype = Genotype(num_channels=16, num_resolutions=3, num_layers=6, parts=parts)
    searched = origin == "searched"
    probabilities = [softmaxes(part, space, generator, down) for part in parts] if searched else None
    cells = cell_rows(genotype, space, probabilities, size=64)
    macs = [sum(cell.get("macs", 0) for cell in cells if cell["part"] == part) for part in range(3)]
    complexity_weight = (0.0, 0.002)[index % 2] if searched else None
    return {
        "key": f"{origin}-{index:04d}-{values.get('cost', '')}", "origin": origin, "index": index, "seed": index,
        "genotype_id": genotype.genotype_id, "genotype": genotype.to_json(), "varied": "{}",
        "complexity_weight": complexity_weight, "candidate_ops": list(space.candidate_ops), "weights": "warm",
        "macs": sum(macs), "num_parameters": 1000 + index, "predicted_ms": sum(macs) / 1e7, "image_size": 64,
        "proxy_psnr_db": 29 + 0.2 * torch.randn((), generator=generator).item(), "cells": cells,
        **{f"macs_part{part}": value for part, value in enumerate(macs)}, **values,
    }  # fmt: skip


def softmaxes(part, space, generator, down) -> dict[str, list[list[float]]]:
    num_cells = len(space.cells)
    beta = 0.3 * torch.randn(num_cells, 3, generator=generator)
    ops = {cell.position: cell.op for cell in part.cells}
    for row, position in zip(beta, space.cells, strict=True):
        row[2] += down.get(ops.get(position), 0.0)
    num_options = {"alpha": len(space.candidate_ops), "gamma": len(WIDTHS), "delta": space.num_layers}
    uniform = {name: torch.full((num_cells, number), 1 / number).tolist() for name, number in num_options.items()}
    return uniform | {"beta": beta.softmax(dim=1).tolist()}


def answers_of(folder: Path) -> list[Answer]:
    return list(answer_guidelines(claim_table(read_collection(folder, margin_db=None), BOOTSTRAP)))


def counts_of(numerator, denominator) -> Counts:
    columns = pd.MultiIndex.from_arrays([range(np.shape(numerator)[1])], names=["part"])
    frames = (pd.DataFrame(np.array(values, dtype=float), columns=columns) for values in (numerator, denominator))
    return Counts(**dict(zip(("numerator", "denominator"), frames, strict=True)))


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """swin and conv_d3 in the front, skip behind it, swin and hin with down-sampled inputs."""
    folder = tmp_path_factory.mktemp("planted")
    down = {"swin": 1.0, "hin": 1.0}
    records = make_records(60, seed=0, op_weights=(FRONT, REAR, REAR), down=down)
    write_dataset(folder, records + make_records(30, seed=1, origin="random"))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Searched architectures without any preference."""
    folder = tmp_path_factory.mktemp("plain")
    write_dataset(folder, make_records(40, seed=2) + make_records(30, seed=3, origin="random"))
    return folder


@pytest.fixture(scope="module")
def study(planted, tmp_path_factory) -> Study:
    return analyze(planted, tmp_path_factory.mktemp("study"), margin_db=None, num_resamples=500, device_name="a <b>")


def test_intervals_cover_the_planted_rates(study):
    table = study.tables["operator_rates"].set_index(["group", "part", "operator"])
    planted = [("searched", 0, "swin", 6 / 15), ("searched", 0, "conv_d3", 3 / 15), ("searched", 1, "skip", 3 / 10)]
    for group, part, operator, rate in [*planted, ("random", 0, "swin", 1 / 8)]:
        row = table.loc[group, part, operator]
        assert row["low"] < rate < row["high"]
        assert row["high"] - row["low"] < 0.12


def test_rates_of_a_part_sum_to_one(study):
    for name in ("operator_rates", "special_operator_shares", "width_shares", "macs_shares"):
        table = study.tables[name]
        levels = ["group", "part"] if name != "macs_shares" else ["group"]
        np.testing.assert_allclose(table.groupby(levels)["rate"].sum(), 1.0)


def test_planted_differences_are_significant_with_their_sign(study):
    table = study.tables["operator_rates_comparisons"].set_index(["group", "compared", "operator"])
    assert table.index.is_unique
    front, skip = table.loc["searched", "part 0 - part 1", "swin"], table.loc["searched", "part 0 - part 2", "skip"]
    control = table.loc["searched", "part 0 - random's", "swin"]
    assert front["significant"] and front["difference"] == pytest.approx(0.3, abs=0.06) and front["effect"] > 0.8
    assert skip["significant"] and skip["difference"] < 0 and skip["effect"] < 0
    assert control["significant"] and control["low"] > 0.2 and control["num_control"] == 30


def test_planted_guidelines_are_supported(study):
    first, second, _ = study.answers
    assert (first.verdict, second.verdict) == ("supported", "supported")
    assert "part 0 above part 1" in first.explanation[0] and "%" in first.explanation[0]


def test_contradicted_guidelines(tmp_path):
    records = make_records(24, seed=4, op_weights=(EQUAL, FRONT, FRONT), down={"swin": -1.0})
    records += make_records(12, seed=16, op_weights=(EQUAL | {"hin": 6.0},) * 3, cost="macs")  # cells with hin
    write_dataset(tmp_path, records + make_records(12, seed=5, origin="random"))
    assert [answer.verdict for answer in answers_of(tmp_path)[:2]] == ["contradicted", "contradicted"]


def test_no_preference_is_not_decided(plain):
    assert [answer.verdict for answer in answers_of(plain)] == ["not decided"] * 3
    collection = read_collection(plain, margin_db=None)
    comparisons = comparison_table(collection, operator_counts(collection), BOOTSTRAP)
    assert comparisons["significant"].mean() < 0.02


def test_bootstrap_resamples_architectures_not_cells():
    values = np.arange(40)[:, None] % 2 * 10  # all ten cells of an architecture agree
    row = rates(counts_of(values, np.full((40, 1), 10)), BOOTSTRAP).iloc[0]
    binomial = 2 * 1.96 * (0.25 / 400) ** 0.5
    clustered = 2 * 1.96 * (0.25 / 40) ** 0.5
    assert row["rate"] == 0.5
    assert row["high"] - row["low"] > 2.5 * binomial
    assert row["high"] - row["low"] == pytest.approx(clustered, rel=0.15)


def test_rate_is_over_cells_and_skips_architectures_without_them():
    row = rates(counts_of([[1], [0], [3]], [[1], [0], [9]]), BOOTSTRAP).iloc[0]
    assert (row["rate"], row["num_architectures"], row["out_of"]) == (0.4, 2, 10)


def test_interval_is_empty_with_one_architecture():
    row = rates(counts_of([[1]], [[2]]), BOOTSTRAP).iloc[0]
    assert row["rate"] == 0.5 and np.isnan(row["low"])


def test_effects_reach_their_ends_and_ties_have_none():
    above, below = counts_of([[3, 1]] * 8, [[4, 4]] * 8), counts_of([[1, 1]] * 9, [[4, 4]] * 9)
    within = compare(above, [((0,), (1,)), ((1,), (0,)), ((0,), (0,))], bootstrap=BOOTSTRAP)
    assert within["effect"].tolist() == [1, -1, 0] and within["p"].iloc[2] == 1
    assert within["difference"].tolist() == [0.5, -0.5, 0]
    against = compare(above, [((0,), None), ((1,), None)], control=below, bootstrap=BOOTSTRAP)
    assert against["effect"].tolist() == [1, 0] and against["p"].iloc[0] < 0.001 < against["p"].iloc[1]


def test_float32_thirds_are_no_preference():
    third = float(np.float32(1) / np.float32(3))
    row = compare(counts_of([[third]] * 20, [[1]] * 20), [((0,), None)], reference=1 / 3, bootstrap=BOOTSTRAP).iloc[0]
    assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)


def test_correction_leaves_out_missing_tests():
    table = correct(pd.DataFrame({"p": [0.01, np.nan, 0.04, 0.9]}))
    np.testing.assert_allclose(table["p_corrected"], [0.03, np.nan, 0.06, 0.9])
    assert table["significant"].tolist() == [True, False, False, False]


def test_selection_keeps_what_is_near_the_best_quartile_of_its_group(tmp_path):
    large = make_records(5, seed=6)
    for record, psnr in zip(large, (28.0, 29.4, 29.6, 30.0, None), strict=True):
        record |= {"proxy_psnr_db": psnr, "complexity_weight": 0.0}
    control = make_records(2, seed=7, origin="random")
    for record, psnr in zip(control, (20.0, 25.0), strict=True):  # worse by far, and not thrown out
        record["proxy_psnr_db"] = psnr
    control[1]["genotype_id"] = control[0]["genotype_id"]
    write_dataset(tmp_path, large + control)
    table = selection_counts(read_collection(tmp_path, margin_db=0.3)).set_index("group")
    assert table["records"].to_dict() == {"searched": 5, "large": 5, "small": 0, "random": 2}
    assert table["selected"].to_dict() == {"searched": 2, "large": 2, "small": 0, "random": 1}
    assert table.loc["large", "threshold_db"] == pytest.approx(29.7 - 0.3)  # 29.7: quartile of four
    assert (table.loc["large", "without_psnr"], table.loc["random", "genotypes"]) == (1, 1)
    assert table.loc["large", "weights"] == "warm 5"
    assert len(read_collection(tmp_path, margin_db=None).selected) == 7


@pytest.mark.parametrize("margin_db", [-0.1, float("nan"), float("inf"), "0.5", True])
def test_margin_is_checked(planted, tmp_path, margin_db):
    with pytest.raises(ValueError, match=r"`margin_db` must be a finite number .* got"):
        analyze(planted, tmp_path, margin_db=margin_db)


def test_bootstrap_settings_are_checked(planted, tmp_path):
    with pytest.raises(ValueError, match="`num_resamples` must be an integer of at least 100, got 10"):
        analyze(planted, tmp_path, num_resamples=10)


def test_missing_and_empty_data_sets_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="architectures.parquet"):
        analyze(tmp_path, tmp_path)
    write_dataset(tmp_path, [])
    with pytest.raises(ValueError, match="architectures.parquet is damaged: it has no rows"):
        analyze(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("architectures", lambda one, other: one.update(genotype=None), "a row has no `genotype`"),
        ("architectures", lambda one, other: one.update(genotype="[1"), "`genotype` must be the JSON of a genotype"),
        ("architectures", lambda one, other: one.update(candidate_ops=["skip", None]), "an operator .* has no name"),
        ("architectures", lambda one, other: one.update(origin="found"), "`origin` must be one of searched, random"),
        ("architectures", lambda one, other: one.update(key=other["key"], cells=[]), "two rows have the same `key`"),
        ("cells", lambda one, other: one["cells"].append(one["cells"][0]), "two rows describe the same cell"),
        ("cells", lambda one, other: one["cells"][0].update(part=3), "`part` must be one of 0, 1, 2"),
        ("cells", lambda one, other: one["cells"][0].update(resolution=9), "a cell must have 0 <= `resolution`"),
        ("cells", lambda one, other: one["cells"][0].update(reachable=None), "a row has no `reachable`"),
        ("cells", lambda one, other: kept_cell(one).update(operator=None), "a row has no `operator`"),
        ("cells", lambda one, other: kept_cell(one).update(dense_layers=None), "a row has no `dense_layers`"),
    ],
)
def test_damaged_rows_are_refused_with_the_files_name(tmp_path, file, change, message):
    one, other = make_records(2, seed=18)
    change(one, other)
    write_dataset(tmp_path, [one, other])
    with pytest.raises(ValueError, match=rf"{tmp_path}/{file}.parquet is damaged: {message}"):
        read_collection(tmp_path, margin_db=None)


def kept_cell(record: dict) -> dict:
    return next(cell for cell in record["cells"] if cell["reachable"])


def test_pathways_count_cells_with_three_inputs(planted):
    collection = read_collection(planted, margin_db=None)
    counts = pathway_counts(collection)
    table = rate_table(collection, counts, BOOTSTRAP).set_index(["group", "operator", "direction"])
    assert table.loc[("searched", "swin", "down"), "rate"] > 0.5
    assert sum(table.loc[("searched", "swin", direction), "rate"] for direction in DIRECTIONS) == pytest.approx(1)
    cells = collection.cells[collection.cells["reachable"] & (collection.cells["origin"] == "searched")]
    middle = cells[(cells["resolution"] == 1) & cells["layer"].isin([4, 5])]
    assert table.loc[("searched", "all", "up"), "out_of"] == len(middle)
    assert table.loc[("random", "all", "up"), "out_of"] == 0


def test_an_input_that_a_budget_took_away_is_no_choice(tmp_path):
    records = make_records(24, seed=17)
    for record in records:
        for cell in record["cells"]:
            if len(cell["beta"]) == len(DIRECTIONS):
                cell["beta"] = {"up": 0.0, "same": 0.5, "down": 0.5}
    write_dataset(tmp_path, records)
    assert not pathway_counts(read_collection(tmp_path, margin_db=None)).denominator.to_numpy().any()
    second = answers_of(tmp_path)[1]
    assert second.verdict == "not decided"
    assert second.explanation == ("It cannot be examined: no searched architectures with such cells.",)


def test_counts_agree_with_the_cells(planted):
    collection = read_collection(planted, margin_db=None)
    cells = collection.cells[collection.cells["reachable"]]
    numerator = operator_counts(collection).numerator
    key = numerator.index[3]
    assert numerator.loc[key, (1, "skip")] == ((cells["key"] == key) & (cells["part"] == 1)
                                               & (cells["operator"] == "skip")).sum()  # fmt: skip
    np.testing.assert_allclose(macs_counts(collection).numerator.sum(axis=1), 1)


def test_non_dominated_architectures(tmp_path):
    records = make_records(5, seed=8)
    for record, ms, psnr in zip(records, (1, 2, 2, 3, 3), (28, 29, 29, 28.5, None), strict=True):
        record |= {"predicted_ms": float(ms), "proxy_psnr_db": psnr}
    write_dataset(tmp_path, records)
    table = architecture_table(read_collection(tmp_path, margin_db=None))
    assert table["is_non_dominated"].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("few", "most"), [(0.45, 0.30), (0.22, 0.37)])
def test_a_claim_that_only_the_largest_architectures_bear_out_is_not_decided(monkeypatch, few, most):
    """Over all cells the rate is on one side of a third, in 35 of 40 architectures on the other."""
    num_cells = np.array([[20.0]] * 5 + [[1.0]] * 35)
    counts = counts_of(num_cells * np.array([[few]] * 5 + [[most]] * 35), num_cells)
    label = counts.labels[0]
    claim = guidelines._Claim(guideline=2, statement="", group="searched", counts=counts, plus=label, reference=1 / 3)
    monkeypatch.setattr(guidelines, "_claims", lambda collection: [claim])
    collection = SimpleNamespace(keys=lambda group: counts.numerator.index)
    row = claim_table(collection, BOOTSTRAP).iloc[0]
    assert (row["low"] > 0 or row["high"] < 0) and row["p_corrected"] < 0.05
    assert row["difference"] * row["effect"] < 0
    assert row["verdict"] == "not decided"


def test_files_are_written_and_agree(study):
    for path in study.files:
        assert path.stat().st_size > 0
    assert study.files[0].name == "report.html"
    folder = study.files[0].parent
    for name, table in study.tables.items():
        parquet, csv = (folder / "tables" / f"{name}{suffix}" for suffix in (".parquet", ".csv"))
        assert {parquet, csv} <= set(study.files)
        assert len(pd.read_parquet(parquet)) == len(pd.read_csv(csv)) == len(table)
    assert len(list((folder / "figures").glob("*.svg"))) == len(list((folder / "figures").glob("*.png"))) == 8


def test_report_is_self_contained_and_escaped(study):
    html = study.files[0].read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//|file:)""", html)
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert html.count('src="data:image/svg+xml;base64,PD94bWwg') == 8  # base64 of `<?xml `
    assert "a &lt;b&gt;" in html and "a <b>" not in html
    for answer in study.answers:
        assert answer.verdict.capitalize() in html


def test_summary_stands_beside_the_paper(study):
    rows = study.summary.set_index("quantity")
    assert rows.loc["architectures selected", "searched"] == "60 of 60 (large 30 of 30, small 30 of 30)"
    assert rows.loc["rate of skip, part 1", "paper"] == "0.3"
    assert rows.loc["guideline 1: wide receptive field in the front", "searched"] == "supported"
    scale = study.tables["scale"].set_index("")["this study"]
    assert (scale["base channels C"], scale["machine"]) == ("16", "a <b>")


def test_same_seed_gives_the_same_files(study, planted, tmp_path):
    again = analyze(planted, tmp_path, margin_db=None, num_resamples=500, device_name="a <b>")
    for first, second in zip(study.files, again.files, strict=True):
        assert first.name == second.name and first.read_bytes() == second.read_bytes()


def test_another_seed_gives_another_interval():
    counts = counts_of(np.arange(20)[:, None], np.full((20, 1), 20))
    first, again, other = (rates(counts, Bootstrap(num_resamples=100, seed=seed)) for seed in (0, 0, 1))
    assert first["low"].item() == again["low"].item() != other["low"].item()


@pytest.mark.parametrize(
    ("records", "num_figures", "reason"),
    [
        (make_records(1, seed=9, op_weights=({"conv_d1": 1.0, "skip": 1.0},) * 3), 7, "hin is not on offer"),
        (make_records(2, seed=11, origin="random"), 8, "no searched architectures"),
    ],
    ids=["one-with-other-operators", "only-random"],
)
def test_degenerate_collections_leave_gaps(tmp_path, records, num_figures, reason):
    write_dataset(tmp_path, records)
    study = analyze(tmp_path, tmp_path / "study", num_resamples=100)
    assert [answer.verdict for answer in study.answers] == ["not decided"] * 3
    assert reason in " ".join(study.answers[1].explanation)
    assert len([path for path in study.files if path.suffix == ".svg"]) == num_figures


def test_without_an_interval_nothing_is_said_of_the_papers_number(tmp_path):
    write_dataset(tmp_path, make_records(1, seed=9))
    study = analyze(tmp_path, tmp_path / "study", num_resamples=100)
    assert study.tables["paper_numbers"]["covers_paper"].isna().all()
    for read, path in ((pd.read_csv, "paper_numbers.csv"), (pd.read_parquet, "paper_numbers.parquet")):
        assert read(tmp_path / "study" / "tables" / path)["covers_paper"].isna().all()
    html = study.files[0].read_text(encoding="utf-8")
    row = re.search(r"<td>rate of skip</td>.*?</tr>", html, re.DOTALL)
    assert "no interval" in row[0] and "<td>no</td>" not in row[0] and "<td>\N{EN DASH}</td>" in row[0]


def test_what_the_interval_says_of_the_papers_number(study):
    table = study.tables["paper_numbers"]
    inside = (table["low"] <= table["paper"]) & (table["paper"] <= table["high"])
    assert table["low"].notna().all() and table["covers_paper"].tolist() == inside.tolist()
    assert set(pd.read_parquet(study.files[0].parent / "tables" / "paper_numbers.parquet")["covers_paper"]) == set(
        inside
    )


def test_two_equal_architectures_are_not_decided(tmp_path):
    records = [record | {"key": f"searched-{i}"} for i, record in enumerate(make_records(1, seed=13) * 2)]
    write_dataset(tmp_path, records)
    assert all(answer.explanation[0].startswith("It cannot be examined") for answer in answers_of(tmp_path))
    collection = read_collection(tmp_path)
    assert len(collection.selected) == 2
    for family in FAMILIES:
        table = comparison_table(collection, family.count(collection), BOOTSTRAP, reference=family.reference)
        assert not table["significant"].any()


def test_a_margin_without_any_psnr_is_an_error(tmp_path):
    write_dataset(tmp_path, make_records(2, seed=14, proxy_psnr_db=None))
    with pytest.raises(ValueError, match="no record of .* has a `proxy_psnr_db`; `margin_db` must be None, got 0.5"):
        read_collection(tmp_path)
    assert len(read_collection(tmp_path, margin_db=None).selected) == 2


def test_without_a_control_the_reason_is_said(tmp_path):
    write_dataset(tmp_path, make_records(12, seed=15, op_weights=(FRONT, REAR, REAR)))
    first, _, third = answers_of(tmp_path)
    assert first.verdict == third.verdict == "not decided"
    assert first.explanation == ("It cannot be examined: no random architectures with such cells.",)
