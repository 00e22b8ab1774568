"""The whole way through Ray with the `tiny` preset: a shared run, a killed one, one with an operator of its own.

Every Ray test of the project is here, so that one cluster serves them all; only the search that is killed has its own.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from latency import LatencyTable
from ops import registry
from pipeline import cluster, part_actors, search_inputs
from pipeline import search as stage
from pipeline.checkpoint import load_checkpoint, load_weights
from pipeline.cli import main
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, photographs, read_image, write_image
from pipeline.models import load_denoiser
from pipeline.priors import load_prior, save_prior
from pipeline.retrain import place_of_workers
from pipeline.run import Run, open_run
from pipeline.settings import RayConfig
from pipeline.summary import ARTIFACTS
from search_space import Genotype, build_network

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SCRATCH = ["retrain.start=scratch", "retrain.num_epochs=1"]
SEARCH_EPOCHS = 60  # enough that a search can be killed in the middle of it


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    """Keep one local Ray for all commands of this module; each command would start its own otherwise."""
    with ray_session(RayConfig()):
        yield


def test_a_local_ray_listens_on_loopback_alone(listens_beyond_loopback: Callable[[int], bool]) -> None:
    assert not listens_beyond_loopback(os.getpid())


@pytest.mark.parametrize(("token", "is_let_in"), [(None, False), ("0" * 64, False), ("own", True)])
def test_a_local_ray_lets_nobody_in_who_lacks_its_token(token: str | None, is_let_in: bool) -> None:
    script = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).get_all_node_info()"
    environment = {"own": {}, None: {"RAY_AUTH_MODE": "disabled"}}.get(token, {"RAY_AUTH_TOKEN": token})
    entered = subprocess.run(
        [sys.executable, "-c", script, ray.get_runtime_context().gcs_address], env=os.environ | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (entered.returncode == 0) == is_let_in
    assert ("InvalidAuthToken" in entered.stderr) == (not is_let_in)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The folder of a finished tiny run, made by the command."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["run", "--config", "tiny", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    return json.loads((finished / "summary.json").read_text())


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image file of odd size."""
    path = tmp_path_factory.mktemp("photograph") / "odd.png"
    rows, columns = np.mgrid[:61, :47]
    write_image(path, np.stack([4 * rows, 5 * columns, 2 * (rows + columns)], axis=2).astype(np.uint8))
    return path


def genotype_of(folder: Path) -> Genotype:
    return Genotype.load(folder / "genotype.json")


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail and return its line."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("denoise-nas: error: ") and error.count("\n") == 1
    return error


def test_the_summary_tells_what_was_found(finished: Path, summary: dict[str, Any]) -> None:
    config = load_config("tiny")
    assert summary["genotype_id"] == genotype_of(finished).genotype_id
    assert summary["seed"] == config.seed
    assert summary["config_hash"] == config.config_hash
    for quality in ("psnr_db", "ssim"):
        assert set(summary[quality]) == {"noisy", "prior", "denoised"}
        assert summary[quality]["prior"] > summary[quality]["noisy"]
    assert summary["psnr_db"]["noisy"] == pytest.approx(20.4, abs=0.5)  # 20 log10(255 / 25), clipped
    for number in ("num_parameters", "macs", "predicted_latency_ms", "measured_latency_ms", "prior_latency_ms"):
        assert summary[number] > 0, number
    assert {image["name"] for image in summary["images"]} == {"chelsea", "motorcycle_left"}
    seconds = summary["seconds"]
    assert set(seconds) == {"latency", "search", "retrain", "evaluate", "total"}
    assert seconds["total"] == pytest.approx(sum(seconds.values()) / 2, abs=0.05)
    assert re.fullmatch(r"[0-9a-f]{32}", summary["mlflow_run_id"])


def test_the_files_of_a_run_lie_beside_its_summary(finished: Path, summary: dict[str, Any]) -> None:
    assert all((finished / name).stat().st_size > 0 for name in ARTIFACTS)
    assert load_config(str(finished / "config.yaml")).config_hash == summary["config_hash"]
    assert summary["genotype_id"] in (finished / "genotype.svg").read_text()
    with Image.open(finished / "comparison.png") as picture:
        assert min(picture.size) > 100
    network = load_denoiser(finished)
    assert sum(p.numel() for p in network.parameters()) == summary["num_parameters"]
    assert len(LatencyTable.load(finished / "latency.parquet", expected=None)) > 20
    assert [path.name for path in finished.glob(".*")] == [".lock"]  # no half-written files


def test_mlflow_holds_the_run(finished: Path, summary: dict[str, Any]) -> None:
    from pipeline.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished.parent / 'mlflow.db'}")
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["kind"] == "architecture"
    assert run.data.tags["config_hash"] == run.data.params["config_hash"] == summary["config_hash"]
    assert run.data.params["search.num_epochs"] == "3"
    assert run.data.metrics["psnr_db"] == pytest.approx(summary["psnr_db"]["denoised"])
    assert run.data.metrics["measured_latency_ms"] == pytest.approx(summary["measured_latency_ms"])
    for part_index in range(3):
        history = client.get_metric_history(run.info.run_id, f"part{part_index}/l_dp_weights")
        assert [metric.step for metric in history] == [1, 2, 3]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "retrain/loss")] == [1, 2]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == set(ARTIFACTS)


def test_a_second_call_prints_the_stored_summary_and_trains_nothing(
    finished: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(run: Run) -> dict[str, Any]:
        raise AssertionError("worked again")

    monkeypatch.setattr(Run, "execute", execute)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["run", "--config", "tiny", "--output", str(finished)]) == 0
    text = capsys.readouterr().out
    assert "holds this run already, finished; its summary:" in text
    assert f"architecture {summary['genotype_id']} (seed 0)" in text
    assert f"{summary['psnr_db']['denoised']:.2f}" in text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_are_refused_in_the_same_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, "run", "--config", "tiny", "--output", str(finished), "seed=1")
    assert "holds a run of other settings" in line and "choose another `output`" in line


def test_a_stage_that_is_done_is_not_repeated(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`search` in the folder of a finished run reads the result; so does `retrain`."""
    before = (finished / "search.pt").stat().st_mtime_ns
    weights = load_weights(finished / "model.safetensors")
    assert main(["search", "--config", "tiny", "--output", str(finished)]) == 0
    assert "prior features" not in capsys.readouterr().out
    assert (finished / "search.pt").stat().st_mtime_ns == before
    assert main(["retrain", "--config", "tiny", "--output", str(finished)]) == 0
    again = load_weights(finished / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_deriving_at_another_threshold_keeps_more_pathways(finished: Path, tmp_path: Path) -> None:
    def pathways(genotype: Genotype) -> int:
        cells = [cell for part in genotype.parts for cell in part.cells]
        return sum(len(cell.resolution_pathways) + len(cell.dense_pathways) for cell in cells)

    def derive(threshold: str) -> Genotype:
        target = tmp_path / f"{threshold}.json"
        command = ["derive", "--config", "tiny", "--output", str(finished), "--to", str(target)]
        assert main([*command, "--threshold", threshold]) == 0
        return Genotype.load(target)

    before = genotype_of(finished)
    assert derive("0.5").genotype_id == before.genotype_id
    assert pathways(derive("0.95")) > pathways(before)
    assert genotype_of(finished) == before


def test_what_is_finished_is_not_overwritten(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a threshold, another genotype, a search after a retraining of its own, or a baseline."""
    settings = ["--config", "tiny", "--output", str(finished)]
    wider = tmp_path / "wider.json"
    assert main(["derive", *settings, "--threshold", "0.95", "--to", str(wider)]) == 0
    assert main(["derive", *settings, "--threshold", "0.95", "--to", str(wider)]) == 0  # the same again
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir() if path.suffix in (".json", ".safetensors")}
    target = finished / "genotype.json"
    line = error_line(capsys, "derive", *settings, "--threshold", "0.95", "--to", str(target))
    assert f"{target} exists already and is not this genotype; give another `--to`" in line
    line = error_line(capsys, "baseline", "train", "plain_unet", *settings)
    assert f"{finished} is of the kind 'run', this is 'baseline'" in line
    assert {path: path.stat().st_mtime_ns for path in before} == before

    def retrain(genotype: Path) -> list[str]:
        return ["retrain", *settings[:2], "--output", str(tmp_path / "own"), "--genotype", str(genotype), *SCRATCH]

    assert main(retrain(target)) == 0
    capsys.readouterr()
    line = error_line(capsys, *retrain(wider))
    held, other = genotype_of(finished).genotype_id, Genotype.load(wider).genotype_id
    assert f"holds the retrained genotype {held}, this is {other}; choose another `output`" in line
    assert "retrained without a search" in error_line(
        capsys, "run", *settings[:2], "--output", str(tmp_path / "own"), *SCRATCH
    )
    assert genotype_of(tmp_path / "own").genotype_id == held


def test_an_impossible_threshold_gives_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, "derive", "--config", "tiny", "--output", str(finished), "--threshold", "1.5")
    assert "`threshold` must lie in [0, 1), got 1.5" in line


def test_the_found_network_is_evaluated_as_in_the_summary(
    finished: Path, summary: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "evaluation"
    assert main(["evaluate", str(finished), "noisy", "--noise", "awgn:25", "--output", str(folder)]) == 0
    found, noisy = csv.DictReader((folder / "evaluation.csv").read_text().splitlines())
    assert float(noisy["psnr_db"]) == pytest.approx(summary["psnr_db"]["noisy"])
    assert float(found["psnr_db"]) == pytest.approx(summary["psnr_db"]["denoised"], abs=1e-3)
    assert float(found["ssim"]) == pytest.approx(summary["ssim"]["denoised"], abs=1e-5)
    assert int(found["num_parameters"]) == summary["num_parameters"]


@pytest.mark.parametrize("as_file", [False, True])
def test_the_found_network_denoises_an_image_of_odd_size(
    finished: Path, photograph: Path, tmp_path: Path, as_file: bool
) -> None:
    model = finished / "model.safetensors" if as_file else finished
    assert main(["denoise", str(model), str(photograph), "--output", str(tmp_path / "out")]) == 0
    result = read_image(tmp_path / "out" / "odd.png")
    assert result.shape == (61, 47, 3)
    assert np.abs(result.astype(int) - read_image(photograph)).mean() < 40


def test_weights_of_another_genotype_are_refused(
    finished: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and shapes alone would let it pass: the genotypes differ in convolutions that have the same parameters."""
    own = genotype_of(finished)
    twins = {"conv_d1": "conv_d2", "conv_d2": "conv_d1", "conv_d3": "conv_r", "conv_r": "conv_d3"}
    parts = [
        replace(part, cells=tuple(replace(cell, op=twins.get(cell.op, cell.op)) for cell in part.cells))
        for part in own.parts
    ]
    other = Genotype.of(own.space, parts)
    other.save(tmp_path / "genotype.json")
    shutil.copy(finished / "model.safetensors", tmp_path)
    line = error_line(capsys, "denoise", str(tmp_path), str(photograph), "--output", str(tmp_path / "out"))
    assert f"do not belong to genotype {other.genotype_id}, they are of {own.genotype_id}" in line


def test_damaged_weights_are_refused(
    finished: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "genotype.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((finished / "model.safetensors").read_bytes()[:200])
    line = error_line(capsys, "denoise", str(tmp_path), str(photograph), "--output", str(tmp_path / "out"))
    assert "model.safetensors cannot be read" in line


def test_retraining_from_scratch_takes_any_genotype(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a prior that is named by a path relative to the folder of the command."""
    folder = tmp_path / "scratch"
    command = ["retrain", "--config", "tiny", "--output", str(folder), "--genotype", str(finished / "genotype.json")]
    assert "no search to inherit weights from" in error_line(capsys, *command)
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path)
    save_prior(load_prior("mirnet16"), "mine.safetensors")
    assert main([*command, "retrain.start=scratch", "prior.weights=mine.safetensors"]) == 0
    assert f"retrained {genotype_of(finished).genotype_id}" in capsys.readouterr().out
    own, inherited = load_weights(folder / "model.safetensors"), load_weights(finished / "model.safetensors")
    assert own.keys() == inherited.keys()
    assert any(not torch.equal(own[name], inherited[name]) for name in own)
    assert genotype_of(folder).genotype_id == genotype_of(finished).genotype_id


def test_a_part_on_another_disk_sends_its_checkpoint_and_goes_on_from_the_one_it_is_sent(
    finished: Path, tmp_path: Path
) -> None:
    config = load_config(str(finished / "config.yaml"))
    run = open_run(config)
    costs = search_inputs.cost_models(config, run.space, run.latency_table().__getitem__)
    shared = ray.put(search_inputs.prepare_inputs(config, run.prior, run.training_images))
    job = replace(part_actors.part_jobs(config, run.space, costs, checkpoint_folder=tmp_path)[1], home="another node")
    actor = part_actors.start_part_actor(config, 1)
    *epochs, end = (ray.get(told) for told in actor.run.remote(job, shared))
    assert list(tmp_path.iterdir()) == [] and not end.checkpoint
    for number, told in enumerate(epochs, 1):
        (tmp_path / "sent.pt").write_bytes(told.checkpoint)
        assert len(load_checkpoint(tmp_path / "sent.pt")["history"]) == told.news.epoch == number
    assert len(epochs) == 3

    *again, same_end = (ray.get(told) for told in actor.run.remote(replace(job, checkpoint=told.checkpoint), shared))
    assert [told.news.metrics for told in again] == [told.news.metrics for told in epochs]  # no epoch was left to do
    assert all(told.news.is_told_again and not told.checkpoint for told in again)
    ray.kill(actor)
    assert same_end.news.part == end.news.part == genotype_of(finished).parts[1]


def test_a_part_whose_news_nobody_reads_waits_after_some(finished: Path, tmp_path: Path) -> None:
    """Its checkpoints would fill the object store; as soon as they are read it goes on to its end."""
    config = load_config(str(finished / "config.yaml"), ["search.num_epochs=20"])
    run = open_run(replace(config, output=str(tmp_path / "run")))
    costs = search_inputs.cost_models(config, run.space, run.latency_table().__getitem__)
    shared = ray.put(search_inputs.prepare_inputs(config, run.prior, run.training_images))
    job = part_actors.part_jobs(config, run.space, costs, checkpoint_folder=tmp_path)[1]
    actor = part_actors.start_part_actor(config, 1)
    unread = actor.run.remote(job, shared)

    def num_epochs() -> int:
        return len(load_checkpoint(tmp_path / "part1.pt")["history"]) if (tmp_path / "part1.pt").exists() else 0

    wait_until(lambda: num_epochs() == part_actors._MOST_UNREAD, seconds=60, what="the first epochs")
    time.sleep(2)
    assert num_epochs() == part_actors._MOST_UNREAD
    told = [ray.get(news).news for news in unread]
    ray.kill(actor)
    assert [epoch.epoch for epoch in told[:-1]] == list(range(1, 21))


def test_retraining_that_does_not_fit_on_this_node_says_what_to_set(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["retrain", "--config", "tiny", "--output", str(tmp_path), "--genotype", str(finished / "genotype.json")]
    line = error_line(capsys, *command, "retrain.start=scratch", "retrain.num_workers=999", "retrain.batch_size=999")
    assert "retraining needs 999 CPU on this node" in line and "`ray.storage_path`" in line


def test_a_run_whose_retraining_does_not_fit_ends_before_its_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    many = ["retrain.num_workers=999", "retrain.batch_size=999"]
    line = error_line(capsys, "run", "--config", "tiny", "--output", str(tmp_path / "run"), *many)
    assert "retraining needs 999 CPU on this node" in line
    assert not (tmp_path / "run" / "latency.parquet").exists()
    many += [f"ray.storage_path={tmp_path}"]
    with pytest.raises(ValueError, match=r"`retrain.num_workers` is 999, of 1 CPU each; Ray has room for \d+; lower"):
        place_of_workers(load_config("tiny", many))
    assert place_of_workers(load_config("tiny", [*many, "ray.address=10.0.0.1:6379"])) is None
    assert "retraining waits until the cluster grows" in caplog.text


def processes_of(*marks: str) -> dict[int, str]:
    """Return the command lines of running processes with one of `marks` in environment or command line, by their id."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                text = command + (entry / "environ").read_bytes().decode(errors="replace")
                if any(mark in text for mark in marks):
                    found[int(entry.name)] = command
        except OSError:
            continue  # it ended meanwhile
    return found


def wait_until(condition: Any, *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_search_killed_in_the_middle_ends_as_an_undisturbed_one(finished: Path, tmp_path: Path) -> None:
    """SIGKILL to driver and actors at once: the rest of its Ray goes too, and the same command goes on from there."""

    def search(folder: Path) -> list[str]:
        return [
            "search", "--config", "tiny", "--output", str(folder), f"search.num_epochs={SEARCH_EPOCHS}",
            f"latency.table={finished / 'latency.parquet'}",
        ]  # fmt: skip

    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    marker = f"DENOISE_NAS_TEST={uuid.uuid4()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *search(killed)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict([marker.split("=")]),  # rounds as this process does
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    checkpoints = [killed / "checkpoints" / f"part{index}.pt" for index in range(3)]
    try:
        wait_until(
            lambda: process.poll() is not None or all(path.exists() for path in checkpoints),
            seconds=180, what="the first epoch",
        )  # fmt: skip
        assert process.poll() is None, "the search ended before it could be killed"
        processes = processes_of(marker)
        folders = set(re.findall(r"/tmp/nas-ray-[\w-]+", " ".join(processes.values())))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pid, command in processes.items():
        if command.startswith("ray::"):  # actors search on until they notice: on a fast machine, to the end
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(marker, *folders), seconds=60, what="the end of the killed search's Ray")
    for folder in folders:
        shutil.rmtree(folder)
    assert not (killed / "genotype.json").exists()
    epochs = [len(load_checkpoint(path)["history"]) for path in checkpoints]
    assert all(0 < epoch for epoch in epochs) and min(epochs) < SEARCH_EPOCHS

    assert main(search(killed)) == 0
    assert main(search(undisturbed)) == 0
    assert genotype_of(killed) == genotype_of(undisturbed)
    ends = [load_checkpoint(folder / "search.pt")["parts"] for folder in (killed, undisturbed)]
    for resumed, straight in zip(*ends, strict=True):
        assert resumed["probabilities"] == straight["probabilities"]
        assert all(torch.equal(resumed["weights"][name], tensor) for name, tensor in straight["weights"].items())


def searched(folder: Path, *settings: str, log: Any = None) -> stage.SearchResult:
    """Search with multiply-adds as costs, which need no prices; checkpoints lie in `folder`."""
    config = load_config("tiny", ["search.cost=macs", "search.num_epochs=12", *settings])
    prior = load_prior(config.prior.weights)
    space = search_inputs.space_of(config, prior.num_channels)
    inputs = search_inputs.prepare_inputs(config, prior, photographs(TRAINING_PHOTOGRAPHS))
    return stage.search(
        config, space, search_inputs.cost_models(config, space, None), inputs, checkpoint_folder=folder, log=log
    )


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """Part index and id, to be had from Ray, of every process that a search starts, in that order."""
    started: list[tuple[int, Any]] = []
    start = part_actors.start_part_actor

    def remembered(config: Any, part_index: int, **options: Any) -> Any:
        actor = start(config, part_index, **options)
        started.append((part_index, process_of(actor)))
        return actor

    monkeypatch.setattr(part_actors, "start_part_actor", remembered)
    return started


def process_of(actor: Any) -> Any:
    """Ask for the id of its process, before it is asked for more: it does one thing after the other."""
    return actor.__ray_call__.remote(lambda _: os.getpid())


def test_a_part_whose_process_is_killed_goes_on_in_another(
    tmp_path: Path, actors: list[tuple[int, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    epochs: dict[int, list[int]] = {0: [], 1: [], 2: []}
    victims: list[int] = []

    def log(part_index: int, epoch: int, metrics: dict[str, float]) -> None:
        epochs[part_index].append(epoch)
        if part_index == 1 and not victims:
            victims.append(ray.get(actors[1][1]))
            os.kill(victims[0], signal.SIGKILL)

    killed = searched(tmp_path / "killed", "search.num_epochs=60", log=log)
    assert [part_index for part_index, _ in actors] == [0, 1, 2, 1]
    assert "the process that searched part 1 died; the same command goes on from its last epoch" in caplog.text
    assert "started again (1 of 3)" in caplog.text
    assert all(sorted(set(told)) == list(range(1, 61)) for told in epochs.values())
    assert killed.genotype == searched(tmp_path / "undisturbed", "search.num_epochs=60").genotype


def test_parts_that_find_no_place_wait_for_others_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage, "_PATIENCE_SECONDS", 0.0)
    epochs: dict[int, list[int]] = {0: [], 1: [], 2: []}
    processors = 0.9 * ray.cluster_resources()["CPU"]

    def log(part_index: int, epoch: int, metrics: dict[str, float]) -> None:
        epochs[part_index].append(epoch)

    searched(tmp_path, f"ray.cpus_per_part={processors}", "search.num_epochs=3", log=log)
    assert all(told == [1, 2, 3] for told in epochs.values())
    assert f"waits for a place with {processors:g} processors and 0 GPUs" in caplog.text


def test_a_part_whose_processes_keep_dying_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = part_actors.start_part_actor

    def doomed(config: Any, part_index: int, **options: Any) -> Any:
        actor = start(config, part_index, **options)
        if part_index == 2:
            os.kill(ray.get(process_of(actor)), signal.SIGKILL)
        return actor

    monkeypatch.setattr(part_actors, "start_part_actor", doomed)
    with pytest.raises(
        part_actors.PartDiedError, match="the process that searched part 2 died; the same command goes on"
    ):
        searched(tmp_path, "ray.max_failures=1")
    assert caplog.text.count("started again (1 of 1)") == 1


def test_reserved_places_that_others_hold_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_RESERVED_SECONDS", 0.0)
    config = load_config("tiny", ["search.cost=macs", "ray.cpus_per_part=0.1", "ray.max_failures=1"])
    space = search_inputs.space_of(config, 16)
    jobs = part_actors.part_jobs(
        config, space, search_inputs.cost_models(config, space, None), checkpoint_folder=tmp_path
    )
    group = ray.util.placement_group([{"CPU": 0.1}] * 3)
    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index) for index in range(3)]
    holding = part_actors.PartActors(config, places)
    ray.get([actor.host.remote() for actor in holding])
    waiting = part_actors.PartActors(config, places)
    with pytest.raises(part_actors.PartDiedError):
        stage.search_parts(jobs, ray.put("no inputs are needed"), waiting)
    waiting.end()
    holding.end()
    ray.util.remove_placement_group(group)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ray.exceptions.ObjectStoreFullError("no room"),
            "object store or the disk under it is full: raise `ray.obj",
        ),
        (ray.exceptions.NodeDiedError("node 3"), "Ray lost a process: node 3; the same command goes on"),
    ],
)
def test_what_ray_runs_out_of_is_named(error: Exception, message: str) -> None:
    with pytest.raises(RuntimeError, match=message), ray_session(RayConfig()):
        raise error


OWN_OPERATOR = """
from torch import nn
from ops import SlimmableConv2d, register_op

@register_op("pointwise")
def build(spec):
    return SlimmableConv2d(spec.in_channels, spec.out_channels, 1)
"""


def test_an_operator_of_ones_own_goes_all_the_way(
    tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Registered in a user's file: priced, searched, derived, built, retrained, and used by later commands."""
    op_file, folder = tmp_path / "mine.py", tmp_path / "own"
    op_file.write_text(OWN_OPERATOR)

    def fresh_process() -> None:
        """Forget what the file registered, as the next command's process would."""
        monkeypatch.undo()
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
        monkeypatch.setattr(cluster, "_loaded_op_files", set())

    fresh_process()
    settings = ["--config", "tiny", "--output", str(folder), f"space.op_files=[{op_file}]",
                "space.candidate_ops=[pointwise]"]  # fmt: skip
    assert main(["search", *settings]) == 0
    priced = {spec.name for spec in LatencyTable.load(folder / "latency.parquet", expected=None)}
    assert {"pointwise", "conv3x3", "down", "up"} <= priced and "conv_d2" not in priced
    genotype = genotype_of(folder)
    assert {cell.op for part in genotype.parts for cell in part.cells} == {"pointwise"}
    build_network(genotype)
    fresh_process()
    assert main(["retrain", *settings]) == 0
    fresh_process()
    command = ["denoise", str(folder), str(photograph), "--output", str(tmp_path / "out")]
    assert "pointwise" in error_line(capsys, *command)
    assert main([*command, "--op-file", str(op_file)]) == 0
    assert read_image(tmp_path / "out" / "odd.png").shape == (61, 47, 3)
    monkeypatch.undo()


def test_a_search_that_fails_names_the_part_and_the_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "damaged"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "part1.pt").write_text("half of a file")
    line = error_line(capsys, "search", "--config", "tiny", "--output", str(folder), "search.cost=macs")
    assert "the search of part 1 failed: ValueError: checkpoint " in line and "part1.pt is damaged" in line
