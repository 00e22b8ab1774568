"""The files that an experiment goes on from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.experiments import Experiment, load_experiment
from pipeline.experiments.cells import (
    CellRecord,
    claim_experiment,
    read_identity,
    read_records,
    record_path,
    values_by_seed,
    wall_seconds,
    write_record,
)
from pipeline.plain import hash_of


def record(variant: str = "slow", seed: int = 0, *, stage: str = "run", started_at: float = 0.0) -> CellRecord:
    return CellRecord(
        stage=stage, variant=variant, seed=seed, values={"psnr_db": 30.0 + seed}, started_at=started_at, seconds=2.0,
        device="abacus",
    )  # fmt: skip


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    records = [record("fast", 1), record("slow", 0), record("slow", 0, stage="measure")]
    for one in records:
        (tmp_path / one.stage).mkdir(exist_ok=True)
        write_record(tmp_path, one)
    assert read_records(tmp_path) == records


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = record_path(tmp_path, "run", "slow", 0)
    path.write_text('{"stage": "run"')
    with pytest.raises(ValueError, match="slow-seed0.json is damaged"):
        read_records(tmp_path)
    path.write_text('{"stage": "run"}')
    with pytest.raises(ValueError, match="slow-seed0.json is no record of a cell"):
        read_records(tmp_path)
    write_record(tmp_path, record("slow", 0))
    path.rename(record_path(tmp_path, "run", "slow", 7))
    with pytest.raises(ValueError, match="slow-seed7.json holds the record of another cell: run slow-seed0"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "change", [{"values": 3}, {"values": {"psnr_db": "high"}}, {"values": {"psnr_db": float("nan")}}, {"seed": "0"},
               {"seconds": None}, {"started_at": 10**400}],
)  # fmt: skip
def test_a_record_of_other_types_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = record_path(tmp_path, "run", "slow", 0)
    path.parent.mkdir()
    path.write_text(json.dumps(vars(record()) | change))
    with pytest.raises(ValueError, match="slow-seed0.json is no record of a cell: "):
        read_records(tmp_path)


def test_only_seeds_without_a_missing_cell_count(two_variants: Experiment) -> None:
    records = [record("slow", 0), record("fast", 0), record("slow", 1)]
    assert values_by_seed(records, two_variants) == {0: {"slow": {"psnr_db": 30.0}, "fast": {"psnr_db": 30.0}}}
    timed = replace(two_variants, measure=two_variants.run)
    assert values_by_seed(records, timed) == {}
    records += [replace(record(name, 0, stage="measure"), values={"ms": 1.0}) for name in ("slow", "fast")]
    assert values_by_seed(records, timed)[0]["fast"] == {"psnr_db": 30.0, "ms": 1.0}


def test_numbers_that_depend_on_no_seed_hold_for_all(two_variants: Experiment) -> None:
    fixed = replace(two_variants.variants[0], is_seeded=False)
    experiment = replace(two_variants, variants=(fixed, two_variants.variants[1]))
    other = two_variants.variants[1].name
    records = [record(fixed.name, 3), record(other, 3), record(other, 4)]
    values = values_by_seed(records, experiment)
    assert values[4] == {fixed.name: {"psnr_db": 33.0}, other: {"psnr_db": 34.0}}


def test_wall_time_counts_overlaps_once_and_pauses_not() -> None:
    records = [record(started_at=0.0), record(started_at=1.0), record(started_at=100.0)]  # 0 .. 2, 1 .. 3, 100 .. 102
    assert wall_seconds(records) == 5.0
    assert wall_seconds([]) == 0.0


def test_a_folder_belongs_to_one_experiment_with_one_size(tmp_path: Path, two_variants: Experiment) -> None:
    with pytest.raises(FileNotFoundError, match="holds no experiment"):
        read_identity(tmp_path)
    claim_experiment(tmp_path, two_variants, load_config("tiny"))
    claim_experiment(tmp_path, two_variants, load_config("tiny", ["output=elsewhere"]))
    for other, config in (
        (replace(two_variants, name="levels"), load_config("tiny")),
        (two_variants, load_config("tiny", ["experiment.train_epochs=1"])),
        (two_variants, load_config("tiny", ["retrain.learning_rate=0.5"])),
    ):
        with pytest.raises(ValueError, match="holds the experiment 'resampling' with settings"):
            claim_experiment(tmp_path, other, config)


@pytest.mark.parametrize("setting", ["shared_steps=7", "shared_batch_size=3", "shared_learning_rate=0.5"])
def test_settings_of_shared_supernets_count_where_they_are_trained(tmp_path: Path, setting: str) -> None:
    for name in ("proxies", "levels"):
        (tmp_path / name).mkdir()
        claim_experiment(tmp_path / name, load_experiment(name), load_config("tiny"))
    other = load_config("tiny", [f"collect.{setting}"])
    claim_experiment(tmp_path / "levels", load_experiment("levels"), other)
    with pytest.raises(ValueError, match="holds the experiment 'proxies' with settings"):
        claim_experiment(tmp_path / "proxies", load_experiment("proxies"), other)


def test_threads_count_where_times_depend_on_them(tmp_path: Path, two_variants: Experiment) -> None:
    other = load_config("tiny", ["retrain.threads_per_worker=2"])
    claim_experiment(tmp_path, two_variants, load_config("tiny"))
    claim_experiment(tmp_path, two_variants, other)
    alone = tmp_path / "alone"
    alone.mkdir()
    claim_experiment(alone, replace(two_variants, run_alone=True), load_config("tiny"))
    with pytest.raises(ValueError, match="holds the experiment 'resampling' with settings"):
        claim_experiment(alone, replace(two_variants, run_alone=True), other)


def test_a_folder_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    config = load_config("tiny")
    settings = hash_of([config.config_hash, config.to_dict()["experiment"]])
    identity = {"schema_version": 1, "experiment": "levels", "hash": settings}
    (tmp_path / "experiment.json").write_text(json.dumps(identity))
    claim_experiment(tmp_path, load_experiment("levels"), config)
    assert read_identity(tmp_path) == identity
