"""A collection: hundreds of searches and random architectures, each kept as a record the moment it ends.

Called by the command line. Ray Tune runs the trials, Optuna draws their settings, the driver writes: the record first,
then to whoever listens. What is recorded is never done again, so an interrupted collection goes on where it was.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.util.queue import Queue

from latency import LatencyTable
from ops.files import read_text, write_atomically
from pipeline.cluster import cluster_address, driver_queue, own_folder, read_op_files
from pipeline.collection_supernets import shared_supernets, supernet_paths
from pipeline.config import Config
from pipeline.plain import hash_of
from pipeline.priors import NUM_PARTS
from pipeline.records import RECORD_SCHEMA_VERSION, Record, read_records, write_dataset, write_record
from pipeline.run import Run
from pipeline.sampling import CollectionSearcher, TrialJob
from pipeline.settings import TOGETHER, TRIAL_SETTINGS, check
from pipeline.trial import FAILURE, CollectionTrial, SharedData, trial_config

RECORDS_FOLDER, DATASET_FOLDER, CHECKPOINTS_FOLDER = "records", "dataset", "checkpoints"
_TRIAL_CPUS = 0.1  # of the process that assembles and scores; the parts' are `ray.cpus_per_part`
_MAX_FAILURES = 2
_MAX_TOGETHER = 1000  # combinations of settings that are tried before the work; each takes milliseconds

OnRecord = Callable[[Record], None]
_logger = logging.getLogger(__name__)


def collect(run: Run, *, num_searched: int, num_random: int, on_record: OnRecord | None = None) -> list[Record]:
    """Bring the collection in the run's folder to the wanted size; needs an initialised Ray.

    Args:
        run: an opened run with a configuration for collecting, whose folder `claim_collection` has marked.
        num_searched: searched architectures in total, with those recorded already.
        num_random: random architectures in total.
        on_record: called with every new record, after it was written.

    Returns:
        All records, the searched ones first.

    Raises:
        ValueError: this machine has no room for a trial.
        RuntimeError: some trials failed repeatedly; the others are recorded.
    """
    records = read_records(run.folder / RECORDS_FOLDER)
    remove_checkpoints(run.folder, records)
    jobs = missing_jobs(records, num_searched=num_searched, num_random=num_random)
    if jobs:
        with Recorder(run, records, total=num_searched + num_random, on_record=on_record) as recorder:
            _run_trials(run, jobs, records, recorder)
        records = read_records(run.folder / RECORDS_FOLDER)
    write_dataset(run.folder / DATASET_FOLDER, records)
    missing = missing_jobs(records, num_searched=num_searched, num_random=num_random)
    if missing:
        names = ", ".join(f"{job.origin} {job.index}" for job in missing[:5])
        raise RuntimeError(
            f"{len(missing)} architectures are missing ({names}{', ..' if len(missing) > 5 else ''}); "
            "the same command tries them again"
        )
    return records


def claim_collection(folder: Path, config: Config) -> None:
    """Check that the folder holds this collection or none, and mark it as this one.

    Raises:
        FileNotFoundError: `collect.supernets` names a folder without shared supernets.
        ValueError: another collection, a setting or value in `collect.vary` that no trial can have, or parts that ask
            Ray for nothing.
    """
    _check_places(config)
    for name in config.collect.vary:
        check(name in TRIAL_SETTINGS, "collect.vary", f"settings among {', '.join(TRIAL_SETTINGS)}", name)
    _check_trials(config)
    missing = [path for path in supernet_paths(folder, config) if not path.exists()]
    if missing and missing[0].parent.resolve() != folder.resolve():
        raise FileNotFoundError(f"`collect.supernets` must hold three shared supernets, {missing[0]} does not exist")
    identity = {"schema_version": RECORD_SCHEMA_VERSION, "collection_hash": collection_hash(config)}
    path = folder / "collection.json"
    if not path.exists():
        write_atomically(path, json.dumps(identity) + "\n")
    try:
        found = json.loads(read_text(path))
        same_version = found["schema_version"] == identity["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not same_version:
        raise ValueError(
            f"{folder} holds a collection of schema version {found['schema_version']}, this program writes "
            f"{RECORD_SCHEMA_VERSION}; choose another `output`"
        )
    if found != identity:
        raise ValueError(
            f"{folder} holds a collection of other settings (hash {found.get('collection_hash')}, this is "
            f"{identity['collection_hash']}); choose another `output`"
        )
    (folder / RECORDS_FOLDER).mkdir(exist_ok=True)


def _check_places(config: Config) -> None:
    """Raise a ValueError unless Ray can count how many trials there is room for, on processors and on GPUs."""
    cpus, gpus = config.ray.cpus_per_part, config.ray.gpus_per_part
    check(cpus > 0 or gpus > 0, "ray.cpus_per_part", "above 0 in a collection, where every part has a place", cpus)
    check(gpus > 0 or config.device != "cuda", "ray.gpus_per_part",
          "above 0 in a collection with device cuda, or all trials go to one GPU", gpus)  # fmt: skip


def _check_trials(config: Config) -> None:
    """Try every value of `collect.vary`; those of settings that must fit each other, all together.

    Raises:
        ValueError: a trial would have impossible settings, or too many would have to be tried.
    """
    values = {
        name: choices if isinstance(choices, list) else [choices["low"], choices["high"]]
        for name, choices in config.collect.vary.items()
    }
    together = [name for name in values if name in TOGETHER]
    number = math.prod(len(values[name]) for name in together)
    check(number <= _MAX_TOGETHER, "collect.vary", f"at most {_MAX_TOGETHER} combinations of {', '.join(together)}",
          number)  # fmt: skip
    first = {name: values[name][0] for name in together}
    trials = chain(
        (dict(zip(together, found, strict=True)) for found in product(*(values[name] for name in together))),
        (first | {name: value} for name in values if name not in together for value in values[name]),
    )
    for settings in trials:
        try:
            ops, known = trial_config(config, 0, settings).space.candidate_ops, config.space.candidate_ops
            check(set(ops) <= set(known), "space.candidate_ops",
                   f"among those of the collection, {', '.join(known)}", ", ".join(ops))  # fmt: skip
        except ValueError as error:
            given = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise ValueError(f"{error}, in a trial that `collect.vary` gives {given}") from error


def collection_hash(config: Config) -> str:
    """Return what every record of a collection agrees on: all settings but names, places and sizes."""
    return hash_of([config.config_hash, config.lasting_settings()["collect"]])


def missing_jobs(records: Sequence[Record], *, num_searched: int, num_random: int) -> list[TrialJob]:
    """Return the trials without a record; random ones are spread evenly among the searched ones."""
    done = {(record["origin"], record["index"]) for record in records}
    wanted = [((i + 0.5) / num, TrialJob(origin=origin, index=i))
              for origin, num in (("searched", num_searched), ("random", num_random)) for i in range(num)]  # fmt: skip
    wanted.sort(key=lambda entry: entry[0])
    return [job for _, job in wanted if (job.origin, job.index) not in done]


def remove_checkpoints(folder: Path, records: Sequence[Record]) -> None:
    """Remove what part searches of recorded architectures kept, also of settings that were not the recorded ones."""
    done = {_name_of(record["key"]) for record in records}
    for place in (folder / CHECKPOINTS_FOLDER).glob("*"):
        if _name_of(place.name) in done:
            shutil.rmtree(place, ignore_errors=True)  # a process may write there still: the next command's turn


def _name_of(key: str) -> str:
    """Return origin and index, without the hash of the settings."""
    return key.rpartition("-")[0]


class Recorder(tune.Callback):
    """Write records on the driver as trials send them; use it as a context manager, which starts and ends the queue."""

    def __init__(self, run: Run, records: Sequence[Record], *, total: int, on_record: OnRecord | None) -> None:
        self._run = run
        self._keys = {record["key"] for record in records}
        self._total = total
        self._on_record = on_record
        self._error: Exception | None = None
        self.queue: Queue | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        return tune.Callback, ()  # Tune stores its callbacks to restore an experiment, which a collection never does

    def __enter__(self) -> "Recorder":
        self.queue = driver_queue()
        return self

    def __exit__(self, *error: object) -> None:
        assert self.queue is not None
        try:
            if self._error is None:
                self.drain()
        finally:
            self.queue.shutdown()
        if self._error is not None:
            raise self._error  # Tune hides it in one of its own

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Write what has arrived, and say why a trial has no record."""
        if FAILURE in result:
            _logger.warning("a trial failed: %s", result[FAILURE])
        self.drain()

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Write what has arrived, and see whether the trial failed for what no other will be spared."""
        self.drain()

    def drain(self) -> None:
        """Write every record in the queue.

        Raises:
            OSError: a record or a checkpoint cannot be written; also raised where the context ends.
        """
        try:
            self._drain()
        except Exception as error:
            self._error = error
            raise

    def _drain(self) -> None:
        assert self.queue is not None
        for sent in self.queue.get_nowait_batch(self.queue.qsize()):
            if isinstance(sent, OSError):
                raise sent
            record: Record = sent
            if record["key"] in self._keys:  # a trial that died after sending was run again
                continue
            write_record(self._run.folder / RECORDS_FOLDER, record)
            remove_checkpoints(self._run.folder, [record])
            self._keys.add(record["key"])
            self._run.progress("collect", len(self._keys), self._total)
            if self._on_record is not None:
                self._on_record(record)


def _run_trials(run: Run, jobs: list[TrialJob], records: list[Record], recorder: Recorder) -> None:
    config = run.config
    check_room(config)
    shared = prepare_shared(run, recorder.queue)
    searcher = CollectionSearcher(
        jobs, config.collect.vary, sampler=config.collect.sampler, seed=config.seed, recorded=records
    )
    part = {"CPU": config.ray.cpus_per_part} | ({"GPU": config.ray.gpus_per_part} if config.ray.gpus_per_part else {})
    bundles = tune.PlacementGroupFactory([{"CPU": _TRIAL_CPUS}, *[part] * NUM_PARTS], strategy="PACK")
    with _tune_settings() as storage:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(CollectionTrial, shared=shared), bundles),
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=len(jobs), reuse_actors=True),
            run_config=tune.RunConfig(
                name="collect", storage_path=storage, verbose=0, callbacks=[recorder],
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        ).fit()  # fmt: skip
    for error in results.errors[:3]:
        _logger.warning("a trial failed: %s", error)


def check_room(config: Config) -> None:
    """Compare what a trial needs with what Ray has: it would wait for ever. Of a cluster, which may grow, a warning.

    Raises:
        ValueError: the local Ray has no room for a trial.
    """
    has, nodes = ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for setting, kind, of_trial in (("cpus_per_part", "CPU", _TRIAL_CPUS), ("gpus_per_part", "GPU", 0.0)):
        part, there = getattr(config.ray, setting), has.get(kind, 0)
        needed = round(NUM_PARTS * part + of_trial, 4)  # Ray's own precision
        if needed <= there and any(part <= node.get(kind, 0) for node in nodes):
            continue
        problem = f"`ray.{setting}` {part:g} makes a trial of {NUM_PARTS} parts need {needed:g} {kind}s"
        if cluster_address(config.ray) is None:
            raise ValueError(f"{problem}, this machine has {there:g}; lower it")
        largest = max((node.get(kind, 0) for node in nodes), default=0)
        _logger.warning("%s, the cluster has %g, at most %g on one machine: trials wait until it grows",
                        problem, there, largest)  # fmt: skip


@contextlib.contextmanager
def _tune_settings() -> Iterator[str]:
    """Give Tune a folder for what it notes about trials; records make a collection go on, so it is removed."""
    folder = own_folder()
    quiet = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result files per trial
        "TUNE_GLOBAL_CHECKPOINT_S": "600",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, as it ends any other
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # misses those result files
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def prepare_shared(run: Run, queue: Any) -> SharedData:
    """Make what all trials share: latency table, prior features, shared supernets; needs an initialised Ray."""
    config = run.config
    table: LatencyTable = run.latency_table()
    images = list(run.training_images.values())
    reference = ray.put(run.search_inputs())
    return SharedData(
        config=config,
        space=run.space,
        table=table,
        inputs=reference,
        supernets=ray.put(shared_supernets(run, reference)),
        training_images=images if config.collect.retrain_steps else [],
        validation_images={
            name: centre_crop(image, config.collect.proxy_size) for name, image in run.validation_images.items()
        },
        op_sources=read_op_files(config.space.op_files),
        queue=queue,
        checkpoints=(run.folder / CHECKPOINTS_FOLDER).absolute(),
        home=ray.get_runtime_context().get_node_id(),
    )


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central `size` x `size` pixels, or all there are."""
    top, left = (max(0, (length - size) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])
