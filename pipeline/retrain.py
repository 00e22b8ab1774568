"""Retrain a derived network with Ray Train.

Called by `pipeline.run`. The driver launches `TorchTrainer`; every worker runs `train_worker`, which wraps the plain
`pipeline.training.Trainer`. arXiv 2502.13359, Section III-D, Eq. (14).
"""

import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.util.queue import Queue
from torch import Tensor

from pipeline.checkpoint import load_checkpoint, restoring, save_checkpoint
from pipeline.cluster import cluster_address, driver_queue, own_folder, prepare_worker, read_op_files
from pipeline.config import Config
from pipeline.data.distilled import training_patches
from pipeline.priors import load_prior
from pipeline.train_folder import STATE_FILE, mend_train_folder
from pipeline.training import Trainer
from search_space import Genotype, build_network

EpochLog = Callable[[int, dict[str, float]], None]
_logger = logging.getLogger(__name__)
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class _NoBackend(Backend):
    """Prepares nothing, but lets the workers of a machine see each other's GPUs, which NCCL goes through."""

    share_cuda_visible_devices = True


class _NoProcessGroup(ray.train.torch.TorchConfig):
    """Leaves the process group to `train_worker`: Ray's listens on all interfaces, for a worker alone too."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray does to the workers before they train."""
        return _NoBackend


class _Trainer(ray.train.torch.TorchTrainer):
    """Leaves Ctrl-C to the command; Ray's own handler ends it without a word, and stays when training is over."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def retrain(
    config: Config,
    genotype: Genotype,
    images: list[np.ndarray],
    *,
    inherited: list[dict[str, Tensor]] | None,
    folder: Path,
    log: EpochLog | None = None,
) -> dict[str, Tensor]:
    """Train the network of `genotype`; needs an initialised Ray.

    A training that was interrupted goes on from its last epoch when called again with the same arguments.

    Args:
        config: settings.
        genotype: the architecture.
        images: (H, W, 3) uint8 or uint16 clean training images.
        inherited: weights of the three parts to start from, or None to start from scratch.
        folder: Ray Train's storage.
        log: called with (epoch, metrics) on the driver, once per epoch; a training that goes on tells of the epochs
            before at its end.

    Returns:
        State of the trained `DenoisingNetwork` on the CPU.

    Raises:
        ValueError: as `place_of_workers`.
        FloatingPointError: more steps than `retrain.max_bad_steps` had no finite loss, or an epoch none with one.
        RuntimeError: the training failed otherwise; the message names the cause.
    """
    place = place_of_workers(config)
    name, storage = _run_name(config, genotype), config.ray.storage_path or str(folder.absolute())
    mend_train_folder(Path(storage) / name)
    queue = driver_queue()
    trainer = _Trainer(
        train_worker,  # type: ignore[arg-type]  # the checker sees the older class, whose functions return nothing
        train_loop_config={
            "config": config,
            "genotype": genotype.to_dict(),
            "images": ray.put(images),
            "inherited": None if inherited is None else ray.put(inherited),
            "op_sources": read_op_files(config.space.op_files),
            "queue": queue,
        },
        torch_config=_NoProcessGroup(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.retrain.num_workers,
            use_gpu=config.device == "cuda",
            resources_per_worker=_resources(config),
            label_selector=place,  # type: ignore[call-arg]  # likewise
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=config.ray.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    told: set[int] = set()

    def tell(epoch: int, metrics: dict[str, float]) -> None:
        if log is not None and epoch not in told:
            told.add(epoch)
            log(epoch, metrics)

    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as executor:
        reader = executor.submit(_forward_logs, queue, tell, stop)
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RuntimeError(f"retraining failed: {error}") from error
        finally:
            stop.set()
            wait([reader])
            queue.shutdown()
        reader.result()  # what went wrong there ends the run too
    if (ended_early := result.return_value) is not None:  # type: ignore[attr-defined]  # likewise
        raise FloatingPointError(f"retraining failed: {ended_early}")
    assert result.checkpoint is not None, "every epoch reports a checkpoint"
    with result.checkpoint.as_directory() as directory:
        state = load_checkpoint(Path(directory) / STATE_FILE)
    for entry in state["history"]:  # the queue may have died with some
        tell(*entry)
    return state["network"]


def train_worker(settings: dict[str, Any]) -> str | None:
    """Train on one Ray Train worker, from the start or from the last checkpoint.

    Args:
        settings: what `retrain` puts together: configuration, genotype, references to images and weights.

    Returns:
        What made the training end early, where another try would end the same way: Ray Train tries whatever is raised.
    """
    config: Config = settings["config"]
    prepare_worker(settings["op_sources"])
    torch.set_num_threads(config.retrain.threads_per_worker)
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    with _process_group(rank, num_workers, device, is_one_node=context.get_local_world_size() == num_workers):
        return _train(settings, rank, num_workers, device)


def _train(settings: dict[str, Any], rank: int, num_workers: int, device: torch.device) -> str | None:
    config: Config = settings["config"]
    torch.manual_seed(config.seed)
    network = build_network(Genotype.from_dict(settings["genotype"]))
    if settings["inherited"] is not None:
        for part, weights in zip(network.parts, ray.get(settings["inherited"]), strict=True):
            part.load_state_dict(weights)
    prior = load_prior(config.prior.weights, device=device)
    trainer = Trainer(
        network,
        training_patches(config, ray.get(settings["images"]), prior, seed=config.seed),
        config.retrain,
        prior=prior,
        seed=config.seed,
        device=device,
        wrap=(lambda module: ray.train.torch.prepare_model(module)) if num_workers > 1 else (lambda module: module),
        rank=rank,
        num_workers=num_workers,
    )
    history: list[tuple[int, dict[str, float]]] = []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as directory:
            state = load_checkpoint(Path(directory) / STATE_FILE, map_location=device)
        with restoring(f"{checkpoint.path}/{STATE_FILE}"):
            history = [(int(epoch), dict(metrics)) for epoch, metrics in state["history"]]
            trainer.load_state(state)
    for epoch in range(len(history), config.retrain.num_epochs):
        try:
            metrics = trainer.run_epoch()
        except FloatingPointError as error:  # of every worker at the same step: gradients are shared before they count
            return f"epoch {epoch + 1}: {error}; the last good checkpoint is epoch {epoch}"
        history.append((epoch + 1, metrics))
        with tempfile.TemporaryDirectory() as directory:
            report = None
            if rank == 0:
                state = trainer.state() | {"history": history}
                save_checkpoint(Path(directory) / STATE_FILE, state)
                report = ray.train.Checkpoint.from_directory(directory)
            ray.train.report(metrics, checkpoint=report)
        if rank == 0:
            # Ray keeps a report seconds after the call returned; what dies before would be repeated, two epochs even.
            ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
            settings["queue"].put((epoch + 1, metrics))
    return None


@contextmanager
def _process_group(rank: int, num_workers: int, device: torch.device, *, is_one_node: bool) -> Iterator[None]:
    """Join the workers: on one node by a file and loopback, on several over the network. One alone opens nothing.

    Over the network torch listens on all interfaces and asks for no token.
    """
    if num_workers == 1:
        yield
        return
    place = None
    if rank == 0 and is_one_node:
        place = f"file://{own_folder()}/group"
    elif rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            place = f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
    place = broadcast_from_rank_zero(place)
    assert place is not None, "rank 0 has told it"
    if is_one_node:
        os.environ.update(GLOO_SOCKET_IFNAME=_LOOPBACK, NCCL_SOCKET_IFNAME=_LOOPBACK)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=place, rank=rank, world_size=num_workers)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        if rank == 0 and is_one_node:
            shutil.rmtree(Path(place.removeprefix("file://")).parent, ignore_errors=True)


def place_of_workers(config: Config) -> dict[str, str] | None:
    """Return the label that keeps workers on this node, whose disk holds the checkpoints; None with `ray.storage_path`.

    Needs an initialised Ray. A cluster that has no room for them may grow: a warning.

    Raises:
        ValueError: this node, or the local Ray, has too few processors or GPUs; they would wait for ever.
    """
    resources, num_workers = _resources(config), config.retrain.num_workers
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if not config.ray.storage_path:
        for name, number in resources.items():
            if (has := nodes[here].get(name, 0)) < number * num_workers:
                raise ValueError(
                    f"retraining needs {number * num_workers} {name} on this node, which has {has:g}: set "
                    "`ray.storage_path` to a place that all nodes reach, so that others can train, or lower "
                    "`retrain.num_workers`"
                )
        return {"ray.io/node-id": here}
    room = sum(min(int(node.get(name, 0) // number) for name, number in resources.items()) for node in nodes.values())
    if room < num_workers:
        each = " and ".join(f"{number} {name}" for name, number in resources.items())
        problem = f"`retrain.num_workers` is {num_workers}, of {each} each; Ray has room for {room}"
        if cluster_address(config.ray) is None:
            raise ValueError(f"{problem}; lower it")
        _logger.warning("%s: retraining waits until the cluster grows", problem)
    return None


def _resources(config: Config) -> dict[str, int]:
    """Return what a worker takes."""
    return {"CPU": 1} | ({"GPU": 1} if config.device == "cuda" else {})


def _forward_logs(queue: Queue, tell: EpochLog, stop: threading.Event) -> None:
    while True:
        is_last = stop.wait(0.3)
        while not queue.empty():
            tell(*queue.get())
        if is_last:
            return


def _run_name(config: Config, genotype: Genotype) -> str:
    """Name a training after everything it depends on: a finished one of the same name is not repeated by Ray Train.

    The number of workers is left out, so that an interrupted training goes on with more or fewer of them.
    """
    settings = config.lasting_settings()
    keys = ("seed", "device", "data", "noise", "prior", "search", "retrain")
    text = json.dumps({key: settings[key] for key in keys}, sort_keys=True)
    return f"retrain-{genotype.genotype_id}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
