"""Collections at tiny scale: every architecture once, whatever happens in between."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray  # noqa: TID251  # as the pipeline does

import pipeline.collect
from ops import registry
from pipeline import cluster
from pipeline.cli import main
from pipeline.cluster import ray_session
from pipeline.collect import claim_collection, collection_hash, missing_jobs
from pipeline.collection_supernets import supernet_key
from pipeline.collection_tracking import CollectionTracking, run_name
from pipeline.config import Config, load_config
from pipeline.plain import dotted
from pipeline.records import RECORD_SCHEMA_VERSION, read_records
from pipeline.sampling import CollectionSearcher, TrialJob
from pipeline.settings import SAMPLERS, TRIAL_SETTINGS, RayConfig
from pipeline.tracking import MlflowClient, TrackingError
from pipeline.trial import CollectionTrial, settings_hash, trial_config
from search_space import Genotype, SearchSpace

SETTINGS = ["ray.cpus_per_part=0.3", "collect.shared_steps=6", "collect.proxy_size=32"]
VARY = {"search.complexity_weight": [0.0, 0.1], "search.arch_learning_rate": {"low": 0.01, "high": 0.1, "log": True}}


def tiny(*overrides: str) -> Config:
    return load_config("tiny", [*SETTINGS, *overrides])


def command(folder: Path, *more: str) -> list[str]:
    return ["collect", "--config", "tiny", "--output", str(folder), *more, *SETTINGS]


def six_architectures(folder: Path) -> list[str]:
    """Return the command for four searched ones, of two strengths and two sets of operators, and two random ones."""
    return [
        *command(folder, "--num", "4", "--random", "2"),
        "collect.vary.search.complexity_weight=[0.0, 0.5]",
        "collect.vary.space.candidate_ops=[[conv_d1, skip], [conv_d1, conv_r, skip]]",
    ]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    """Keep one local Ray for all commands of this module; each command would start its own otherwise."""
    with ray_session(RayConfig()):
        yield


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Return the folder of a collection of four searched and two random architectures."""
    folder = tmp_path_factory.mktemp("collection") / "tiny"
    (folder / "tune").mkdir(parents=True)
    (folder / "tune" / "notes.txt").write_text("the user's own")
    assert main(six_architectures(folder)) == 0
    return folder


@contextlib.contextmanager
def mlflow_server(database: Path) -> Iterator[str]:
    """Serve a database as a user would look at it; yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def browser_page(url: str, folder: Path) -> str:
    """Return the page as Chromium has drawn it, a few seconds of script time later."""
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
               "--window-size=1900,1000", "--virtual-time-budget=25000", "--dump-dom", url]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


@pytest.mark.ray
@pytest.mark.slow
class TestCollection:
    def test_every_architecture_has_a_record_with_costs_and_scores(self, collection: Path) -> None:
        records = read_records(collection / "records")
        assert [(r["origin"], r["index"]) for r in records] == [*(("searched", i) for i in range(4)),
                                                                 *(("random", i) for i in range(2))]  # fmt: skip
        assert len({r["key"] for r in records}) == 6
        for record in records:
            genotype = Genotype.from_dict(json.loads(record["genotype"]))
            assert genotype.genotype_id == record["genotype_id"]
            assert 5 < record["proxy_psnr_db"] < 60
            for name in ("macs", "num_parameters", "predicted_ms"):
                assert record[name] == pytest.approx(sum(record[f"{name}_part{i}"] for i in range(3)))
            assert sum(cell["reachable"] for cell in record["cells"]) == sum(len(p.cells) for p in genotype.parts)
        assert {record["seed"] for record in records} == {0, 1, 2, 3, 1_000_000, 1_000_001}
        assert {record.get("weights") for record in records[:4]} == {"warm"}
        for record in records:
            operators = {cell["operator"] for cell in record["cells"] if cell["reachable"]}
            assert operators <= set(record["candidate_ops"])
        assert {len(record["candidate_ops"]) for record in records[:4]} == {2, 3}
        assert (collection / "tune" / "notes.txt").exists()

    def test_the_data_set_reads_without_our_code(self, collection: Path) -> None:
        architectures = pd.read_parquet(collection / "dataset" / "architectures.parquet")
        cells = pq.read_table(collection / "dataset" / "cells.parquet")
        assert len(architectures) == 6
        assert cells.num_rows == 6 * 3 * 4
        assert cells.schema.metadata[b"schema_version"] == str(RECORD_SCHEMA_VERSION).encode()
        rows = cells.to_pylist()
        assert rows[0]["origin"] == "searched" and sum(dict(rows[0]["alpha"]).values()) == pytest.approx(1, abs=1e-4)
        assert all(row["alpha"] is None for row in rows if row["origin"] == "random")

    def test_nothing_is_done_twice(self, collection: Path, capsys: pytest.CaptureFixture) -> None:
        before = {path.name: path.stat().st_mtime_ns for path in (collection / "records").iterdir()}
        assert main(six_architectures(collection)) == 0
        assert {path.name: path.stat().st_mtime_ns for path in (collection / "records").iterdir()} == before
        assert "6 architectures" in capsys.readouterr().out

    def test_mlflow_has_one_run_per_architecture_however_often_it_is_sent(self, collection: Path) -> None:
        assert main(["track", str(collection)]) == 0
        client = MlflowClient(f"sqlite:///{collection.parent / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name.endswith("collections")]
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'architecture'")
        assert sorted(run.data.tags["record"] for run in runs) == sorted(
            record["key"] for record in read_records(collection / "records")
        )
        parent = (collection / "mlflow_run_id").read_text().strip()
        assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent}
        assert all(run.info.status == "FINISHED" and "part2/gmacs" in run.data.metrics for run in runs)
        assert {file.path for file in client.list_artifacts(runs[0].info.run_id)} == {"genotype.json", "genotype.svg"}

    @pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
    def test_the_link_opens_all_architectures_best_first(self, collection: Path, tmp_path: Path) -> None:
        run_id = (collection / "mlflow_run_id").read_text().strip()
        with mlflow_server(collection.parent / "mlflow.db") as address:
            page = browser_page(f"{address}/#/experiments/1/runs?viewStateShareKey={run_id}", tmp_path)
        records = sorted(read_records(collection / "records"), key=lambda record: -record["proxy_psnr_db"])
        positions = [page.find(run_name(record)) for record in records]
        assert -1 not in positions and positions == sorted(positions)
        for column in ("proxy_psnr_db", "own_psnr_db", "predicted_ms", "genotype_id"):
            assert column in page

    def test_a_process_that_searched_before_finds_what_a_fresh_one_finds(
        self, collection: Path, tmp_path: Path
    ) -> None:
        again = tmp_path / "again"
        shutil.copytree(collection, again, ignore=shutil.ignore_patterns("mlflow_run_id"))
        (last,) = (again / "records").glob("searched-00003-*.json")
        before = json.loads(last.read_text())
        last.unlink()
        assert main(six_architectures(again)) == 0
        after = json.loads(last.read_text())
        assert (after["genotype_id"], after["varied"]) == (before["genotype_id"], before["varied"])
        for name in ("proxy_psnr_db", "own_psnr_db", "l_dp_part0", "l_dp_part2", "entropy_alpha"):
            assert after[name] == pytest.approx(before[name], rel=1e-5), name  # features round by where memory lies

    def test_analyze_leaves_a_report_here_and_in_mlflow(self, collection: Path, capsys: pytest.CaptureFixture) -> None:
        assert main(["analyze", str(collection), "--margin-db", "5"]) == 0
        assert (collection / "study" / "report.html").stat().st_size > 10_000
        assert "guideline 3, not decided" in capsys.readouterr().out
        client = MlflowClient(f"sqlite:///{collection.parent / 'mlflow.db'}")
        files = client.list_artifacts((collection / "mlflow_run_id").read_text().strip(), "study")
        assert {"study/report.html", "study/figures", "study/tables"} == {file.path for file in files}

    def test_other_settings_are_refused(self, collection: Path, capsys: pytest.CaptureFixture) -> None:
        assert main([*command(collection, "--num", "4"), "collect.warm_start=false"]) == 2
        assert "collection of other settings" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.faults
def test_nothing_is_lost_to_a_full_disk_and_an_absent_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "full"
    write, written = pipeline.collect.write_record, []

    def write_until_full(target: Path, record: dict) -> Path:
        if len(written) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(record["key"])
        return write(target, record)

    def refuse(*_: object) -> str:
        raise TrackingError("the server went away")

    with monkeypatch.context() as full:
        full.setattr(pipeline.collect, "write_record", write_until_full)
        assert main(command(folder, "--random", "3", "--num", "0")) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [record["key"] for record in read_records(folder / "records")] == written

    with monkeypatch.context() as away:
        away.setattr(CollectionTracking, "_send", refuse)
        assert main(command(folder, "--random", "3", "--num", "0")) == 0
    assert len(read_records(folder / "records")) == 3
    assert caplog.text.count("MLflow fails; records stay on disk") == 1
    assert (folder / "mlflow_unsent").exists()

    assert main(["track", str(folder)]) == 0
    assert not (folder / "mlflow_unsent").exists()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert len(client.search_runs(["1"], "tags.kind = 'architecture'")) == 3


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert main(command(tmp_path / "file" / "collection")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_random_settings_depend_on_seed_and_index_alone() -> None:
    def suggestions(indices: list[int], seed: int = 0) -> list[dict]:
        jobs = [TrialJob(origin="searched", index=i) for i in indices]
        searcher = CollectionSearcher(jobs, VARY, sampler="random", seed=seed, recorded=[])
        return [searcher.suggest(f"trial{i}") for i in indices]

    whole = suggestions([0, 1, 2, 3, 4, 5])
    assert suggestions([3, 5]) == [whole[3], whole[5]]
    assert suggestions([0, 1, 2], seed=1) != whole[:3]
    assert len({entry["settings"]["search.arch_learning_rate"] for entry in whole}) == 6
    assert suggestions([0], seed=4294) != suggestions([0], seed=2**32 - 1)
    assert trial_config(tiny(f"seed={2**32 - 1}"), 3, {}).seed == 2


def test_a_trial_of_another_start_has_another_key() -> None:
    config = tiny()
    warm, cold = ({"collect.warm_start": is_warm} for is_warm in (True, False))
    assert settings_hash(config, {"search.temperature": 1.0}) == config.config_hash
    assert len({settings_hash(config, settings) for settings in ({}, warm, cold)}) == 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_range_of_whole_numbers_gives_whole_numbers(tmp_path: Path, sampler: str) -> None:
    vary = {
        "search.num_epochs": {"low": 2, "high": 6},
        "search.arch_samples": {"low": 1, "high": 8, "log": True},
        "search.target_ms": {"low": 2, "high": 6},
    }
    config = tiny().with_settings({"collect.vary": vary})
    claim_collection(tmp_path, config)

    def suggestions(num: int, recorded: list[dict]) -> list[dict]:
        jobs = [TrialJob(origin="searched", index=i) for i in range(num)]
        searcher = CollectionSearcher(jobs, vary, sampler=sampler, seed=0, recorded=recorded)
        return [searcher.suggest(f"trial{i}")["settings"] for i in range(num)]

    drawn = suggestions(40, [])
    assert {settings["search.num_epochs"] for settings in drawn} == {2, 3, 4, 5, 6}
    assert {1, 8} <= {settings["search.arch_samples"] for settings in drawn} <= set(range(1, 9))
    assert len({settings["search.target_ms"] for settings in drawn}) == 40
    for settings in drawn:
        trial_config(config, 0, settings)
    scores = {"origin": "searched", "proxy_psnr_db": 20.0, "predicted_ms": 10.0}
    assert suggestions(1, [scores | {"varied": json.dumps(settings)} for settings in drawn])


@pytest.mark.parametrize(("low", "high"), [(2.5, 6), (2, 6.5), (2.0, 6)])
def test_a_range_of_whole_numbers_has_whole_ends(tmp_path: Path, low: float, high: float) -> None:
    config = tiny().with_settings({"collect.vary": {"search.num_epochs": {"low": low, "high": high}}})
    with pytest.raises(ValueError, match=r"`search.num_epochs` must be of type int, got \d\.\d"):
        claim_collection(tmp_path, config)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_learn_from_recorded_trials(sampler: str) -> None:
    recorded = [
        {"origin": "searched", "proxy_psnr_db": 20.0 + good, "predicted_ms": 10.0,
         "varied": json.dumps({"search.complexity_weight": 0.1 * good, "search.arch_learning_rate": 0.02 + 0.001 * i})}
        for i in range(60) for good in (0, 1)
    ]  # fmt: skip
    jobs = [TrialJob(origin="searched", index=i) for i in range(40)]
    searcher = CollectionSearcher(jobs, VARY, sampler=sampler, seed=0, recorded=recorded)
    chosen = []
    for i in range(40):
        chosen.append(searcher.suggest(f"t{i}")["settings"]["search.complexity_weight"])
        searcher.on_trial_complete(f"t{i}", {"proxy_psnr_db": 20.0 + 10 * chosen[-1], "predicted_ms": 10.0})
    assert chosen.count(0.1) > 20  # half of 40 if nothing were learned


def error_line(capsys: pytest.CaptureFixture, folder: Path, *settings: str) -> str:
    """Run a collection that must fail and return its line."""
    assert main([*command(folder, "--num", "1"), *settings]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("denoise-nas: error: ")]
    return line


@pytest.mark.ray
def test_what_this_machine_has_no_room_for_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    part = ray.cluster_resources()["CPU"] / 2
    line = error_line(capsys, tmp_path / "a", f"ray.cpus_per_part={part}")
    assert f"`ray.cpus_per_part` {part:g} makes a trial of 3 parts need {3 * part + 0.1:g} CPUs, this machine" in line
    assert not (tmp_path / "a" / "latency.parquet").exists()
    line = error_line(capsys, tmp_path / "b", "search.num_patches=100000")
    assert "cached prior features need about" in line and "`ray.object_store_mb` is 600" in line


@pytest.mark.ray
def test_a_cluster_without_room_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    has = ray.cluster_resources()["CPU"]
    for part, is_warned in ((has / 4, False), (has / 2, True)):
        pipeline.collect.check_room(tiny("ray.address=10.0.0.1:6379", f"ray.cpus_per_part={part}"))
        assert ("trials wait until it grows" in caplog.text) == is_warned
    assert f"need {3 * has / 2 + 0.1:g} CPUs, the cluster has {has:g}, at most {has:g} on one machine" in caplog.text


NOT_A_NUMBER = """
from ops import SlimmableConv2d, register_op


class NotANumber(SlimmableConv2d):
    def forward(self, x, out_channels=None):
        return super().forward(x, out_channels) * float("nan")


@register_op("not_a_number")
def build(spec):
    return NotANumber(spec.in_channels, spec.out_channels, 1)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_shared_supernets_without_a_finite_loss_are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(cluster, "_loaded_op_files", set())
    path = tmp_path / "operator.py"
    path.write_text(NOT_A_NUMBER)
    line = error_line(capsys, tmp_path / "c", f"space.op_files=[{path}]", "space.candidate_ops=[not_a_number]")
    assert "the training of shared supernets failed: shared supernet " in line
    assert ", step 6: 6 steps had a loss or gradient that is not finite, `search.max_bad_steps` is 20; lower" in line


ONLY_IN_ACTORS = """
import ray


def bad():
    return float("nan") if ray.is_initialized() and ray.get_runtime_context().get_actor_id() else 1.0
"""


@pytest.mark.ray
@pytest.mark.faults
def test_a_search_without_finite_losses_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """Its shared supernets, which are no actors, train."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(cluster, "_loaded_op_files", set())
    path = tmp_path / "operator.py"
    source = NOT_A_NUMBER.replace("not_a_number", "not_in_actors")  # Ray's processes may know the other one
    path.write_text(ONLY_IN_ACTORS + source.replace('float("nan")', "bad()"))
    settings = [f"space.op_files=[{path}]", "space.candidate_ops=[not_in_actors]"]
    assert main([*command(tmp_path / "c", "--num", "2"), *settings]) == 2
    assert "2 architectures are missing (searched 0, searched 1)" in capsys.readouterr().err
    assert caplog.text.count("a trial failed: the search of part ") == 2
    assert caplog.text.count("epoch 1: no step had a finite loss") == 2


@pytest.mark.parametrize(("threshold", "most"), [(0.5, 1), (0.8, 2)])  # of two directions
def test_the_control_keeps_what_the_searches_can(tiny_space: SearchSpace, threshold: float, most: int) -> None:
    shared = SimpleNamespace(config=tiny(f"search.threshold={threshold}"), space=tiny_space)
    genotypes = [CollectionTrial._draw(SimpleNamespace(shared=shared), index)[1] for index in range(20)]
    kept = [len(cell.resolution_pathways) for genotype in genotypes for part in genotype.parts for cell in part.cells]
    assert max(kept) == most


def test_missing_jobs_spread_the_control_among_the_searches() -> None:
    jobs = missing_jobs([{"origin": "searched", "index": 1}], num_searched=4, num_random=2)
    assert [(job.origin, job.index) for job in jobs] == [
        ("searched", 0), ("random", 0), ("searched", 2), ("random", 1), ("searched", 3),
    ]  # fmt: skip


def test_unusable_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(command(tmp_path / "a", "--sampler", "grid")) == 2
    assert "`collect.sampler` must be one of random, tpe, nsga2, got 'grid'" in capsys.readouterr().err
    assert main(command(tmp_path / "b", "--num", "-1")) == 2
    assert "`--num` must be at least 0, got -1" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"`collect.vary.search.temperature` must be a list of choices"):
        tiny("collect.vary.search.temperature=3")
    with pytest.raises(ValueError, match=r"`collect.vary.collect.warm_start` must be {low, high} with low <= high"):
        tiny("collect.vary.collect.warm_start={low: false, high: true}")
    with pytest.raises(ValueError, match=r"`collect.vary.search.temperature` must be {low, high} with low > 0 for log"):
        tiny("collect.vary.search.temperature={low: 0, high: 1, log: true}")
    others = tiny(
        "space.candidate_ops=[skip, conv_d1]", "collect.vary.space.candidate_ops=[[skip, conv_d1], [skip, ib]]"
    )
    with pytest.raises(ValueError, match=r"must be among those of the collection, skip, conv_d1, got 'skip, ib'"):
        claim_collection(tmp_path, others)


@pytest.mark.parametrize(
    "name",
    ["search.complexity", "search.patch_size", "search.num_patches", "search.prior_features", "search.threads_per_part",
     "search.threshold", "noise.sigma_255", "noise.validation_sigma_255", "data.architecture_share", "prior.weights",
     "space.num_layers",
     "latency.image_size", "retrain.learning_rate", "evaluate.image_size", "collect.retrain_steps", "ray.max_failures",
     "device", "seed"],
)  # fmt: skip
def test_trials_differ_in_nothing_that_they_share(tmp_path: Path, name: str) -> None:
    defaults = dict(dotted(tiny().to_dict())) | {"search.complexity": 1.0}
    config = tiny().with_settings({"collect.vary": {name: [defaults[name]]}})
    with pytest.raises(ValueError, match=r"`collect.vary` must be settings among collect.*, got '" + name):
        claim_collection(tmp_path, config)
    assert not any(tmp_path.iterdir())


def test_trials_differ_in_what_each_reads(tmp_path: Path) -> None:
    settings = dict(dotted(tiny().to_dict()))
    claim_collection(
        tmp_path, tiny().with_settings({"collect.vary": {name: [settings[name]] for name in TRIAL_SETTINGS}})
    )
    assert (tmp_path / "collection.json").exists()


def test_a_budget_that_some_trials_would_not_hold_is_refused_before_any_work(tmp_path: Path) -> None:
    budget = ["search.target_ms=3", "search.complexity_weight=0.001"]
    message = (
        r"`search.complexity_weight` must be above 0 when search.target_ms is set and search.derive_samples is 0, "
        r"got 0.0, in a trial that `collect.vary` gives search.complexity_weight=0.0"
    )
    with pytest.raises(ValueError, match=message):
        claim_collection(tmp_path, load_config("collect", budget))
    both = {"search.complexity_weight": [0.001, 0.0], "search.derive_samples": [16, 0]}
    with pytest.raises(ValueError, match=message + ", search.derive_samples=0"):
        claim_collection(tmp_path, load_config("collect", budget).with_settings({"collect.vary": both}))
    assert not any(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    weights = {"search.complexity_weight": [0.001, 0.003], "search.target_ms": [2, 3]}
    claim_collection(tmp_path / "a", load_config("collect").with_settings({"collect.vary": weights}))
    claim_collection(tmp_path / "b", load_config("collect", [*budget, "search.derive_samples=16"]))


def test_too_many_combinations_are_refused_at_once(tmp_path: Path) -> None:
    choices = [0.001 * n for n in range(1, 1001)]
    vary = {name: choices for name in ("search.complexity_weight", "search.target_ms")}
    with pytest.raises(ValueError, match=r"`collect.vary` must be at most 1000 combinations of .*, got 1000000"):
        claim_collection(tmp_path, tiny().with_settings({"collect.vary": vary}))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ray.cpus_per_part=0"], "`ray.cpus_per_part` must be above 0 in a collection, where every part has a place"),
        (["device=cuda"], "`ray.gpus_per_part` must be above 0 in a collection with device cuda"),
    ],
)
def test_parts_that_ask_for_nothing_are_refused(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        claim_collection(tmp_path, tiny(*settings))
    assert not any(tmp_path.iterdir())


def test_shared_supernets_of_another_collection_are_there(tmp_path: Path) -> None:
    config = tiny(f"collect.supernets={tmp_path / 'other'}")
    with pytest.raises(FileNotFoundError, match=r"`collect.supernets` must hold three .*other/supernet0.safetensors"):
        claim_collection(tmp_path / "own", config)
    claim_collection(tmp_path / "other", config)  # this one's own: they will be trained
    for index in range(3):
        (tmp_path / "other" / f"supernet{index}.safetensors").touch()
    claim_collection(tmp_path / "own", config)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    claim_collection(tmp_path, tiny())
    path = tmp_path / "collection.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    with pytest.raises(ValueError, match=r"schema version 7, this program writes 1"):
        claim_collection(tmp_path, tiny())
    path.write_text("{")
    with pytest.raises(ValueError, match=r"collection.json is damaged"):
        claim_collection(tmp_path, tiny())


def test_damaged_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "searched-00000-abc.json").write_text('{"schema_version": 1, "key": "other"')
    with pytest.raises(ValueError, match=r"record .*searched-00000-abc.json cannot be read"):
        read_records(tmp_path)


def test_texts_far_larger_than_any_of_ours_are_not_read(tmp_path: Path) -> None:
    claim_collection(tmp_path, tiny())
    record = tmp_path / "records" / "searched-00000-abc.json"
    for path, reader in ((record, lambda: read_records(tmp_path / "records")),
                         (tmp_path / "collection.json", lambda: claim_collection(tmp_path, tiny()))):  # fmt: skip
        path.touch()
        os.truncate(path, 20_000_000)
        with pytest.raises(ValueError, match=rf"{path.name} .*it is larger than 10000000 bytes"):
            reader()


def test_an_unreachable_tracking_server_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*command(tmp_path / "c"), "tracking.uri=http://127.0.0.1:9"]) == 2
    assert "no MLflow server answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_hashes_cover_what_matters() -> None:
    assert collection_hash(tiny()) == collection_hash(tiny("output=x", "collect.supernets=y", "tracking.experiment=z"))
    assert collection_hash(tiny()) != collection_hash(tiny("collect.warm_start=false"))
    assert supernet_key(tiny()) == supernet_key(tiny("collect.warm_start=false", "search.num_epochs=9"))
    assert supernet_key(tiny()) != supernet_key(tiny("collect.shared_steps=7"))
    assert supernet_key(tiny()) != supernet_key(tiny("search.threshold=0.8"))
