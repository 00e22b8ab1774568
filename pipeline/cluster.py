"""Start a local Ray for the time of a command, or join a running cluster.

Called by every command that distributes work. Ray's usage statistics are off in what is started here.
"""

import faulthandler
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from latency import keep_freed_memory
from ops.files import is_alive
from pipeline.settings import RayConfig
from pipeline.time_slice import patient_processes

# Read by Ray when it is imported or started: no statistics sent, Ray Train's current implementation, which looks for
# checkpoints this often (seconds), no fatal limit on memory shared with others.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# The secret of a cluster that lives for one command: no file is written, and other users of the machine do not know it.
# Whoever joins another cluster brings its token.
_LOCAL_ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
_CONNECT_SECONDS = 5.0
_FOLDER_PREFIX = "nas-ray-"  # followed by the id of the process that the folder belongs to
_logger = logging.getLogger(__name__)


def cluster_address(config: RayConfig) -> str | None:
    """Return where the running cluster is that a command joins, or None for a local one of its own.

    `config.address` counts most, then `RAY_ADDRESS`, which Ray sets in the jobs of a cluster.
    """
    return config.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Provide an initialised Ray: the one that runs already, the cluster at `cluster_address`, or a local one.

    A local one has its own temporary folder and is gone afterwards.

    Raises:
        ConnectionError: no cluster at the address, or it does not let us in.
        ValueError: a part search asks for more than the local one has.
        RuntimeError: inside, Ray had no room left or lost a process.
    """
    address = cluster_address(config)
    for name, value in (_ENVIRONMENT if address is not None else _ENVIRONMENT | _LOCAL_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        with _initialised(config, address):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own handler ends the command without a word
            _die_of_fatal_signals()
            yield
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        raise RuntimeError(
            "Ray's object store or the disk under it is full: raise `ray.object_store_mb` or free disk space, then the "
            "same command goes on"
        ) from error
    except (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError) as error:
        raise RuntimeError(f"Ray lost a process: {str(error).splitlines()[0]}; the same command goes on") from error


def _refuse_more_than(resources: Mapping[str, float], config: RayConfig) -> None:
    """Raise a ValueError if a part search asks for more than there is; it would wait for ever."""
    for setting, kind in (("cpus_per_part", "CPU"), ("gpus_per_part", "GPU")):
        wanted, there = getattr(config, setting), resources.get(kind, 0)
        if wanted > there:
            raise ValueError(f"`ray.{setting}` must be at most {there:g}, the {kind}s of this machine, got {wanted:g}")


@contextmanager
def _initialised(config: RayConfig, address: str | None) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None:
        _reach(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except ray.exceptions.AuthenticationError as error:
            raise ConnectionError(f"the Ray cluster at `ray.address` {address!r} refuses us: {error}") from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConnectionError(f"no Ray cluster at `ray.address` {address!r}: {error}") from error
        try:
            _tell_of_missing_gpus(config)
            yield
        finally:
            ray.shutdown()
        return
    _sweep()
    folder = own_folder()
    _read_environment_again()
    try:
        with warnings.catch_warnings(), patient_processes(), _loopback() as address_of_node:
            warnings.simplefilter("ignore")  # Ray's own notices about its defaults
            ray.init(
                _node_ip_address=address_of_node,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=config.object_store_mb * 1024**2,
                _temp_dir=str(folder),
            )
        _refuse_more_than(ray.cluster_resources(), config)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _read_environment_again() -> None:
    """Let Ray see `_LOCAL_ENVIRONMENT`, which it has looked for already where something imported it before."""
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, and the checker sees less of it

    Config.initialize("")


def _tell_of_missing_gpus(config: RayConfig) -> None:
    """Warn of a cluster without GPUs for parts that ask for some; Ray does not tell which machines may yet come."""
    import ray

    if config.gpus_per_part > 0 and not ray.cluster_resources().get("GPU"):
        _logger.warning(
            "the cluster has no GPU at present, `ray.gpus_per_part` is %g: part searches wait for a machine with one",
            config.gpus_per_part,
        )


@contextmanager
def _loopback() -> Iterator[str]:
    """Provide the address of a node that nobody reaches from outside: all servers of such a node listen there alone.

    Inside, Ray keeps it. It would replace it by the machine's outer address otherwise, except on macOS, and listen on
    all of them; it has no setting for that.
    """
    from ray._private import services

    replace = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield "127.0.0.1"
    finally:
        services.resolve_ip_for_localhost = replace


def driver_queue() -> Any:
    """Return a queue of Ray on the driver's own machine, so that no other machine takes it along; shut it down."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def own_folder() -> Path:
    """Make a temporary folder of this process; where it is killed, the next local Ray or process of ours removes it."""
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=_temporary_root()))


def _temporary_root() -> Path:
    return Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())  # Ray's socket names must be short


def _sweep() -> None:
    """Remove the folders of our processes that were killed."""
    for folder in _temporary_root().glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            with suppress(OSError):  # of another user, or another command tidies too
                if folder.stat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)


def _reach(address: str) -> None:
    """Ask `host:port` once: Ray itself would try for minutes. Other addresses, such as `auto`, Ray looks up itself."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster at `ray.address` {address!r}: {error}") from error


def read_op_files(paths: tuple[str, ...]) -> dict[str, str]:
    """Read operator files, as in `space.op_files`, keyed by path, so that they can travel to other machines.

    Raises:
        FileNotFoundError: a file does not exist.
    """
    sources = {}
    for name in paths:
        if not Path(name).is_file():
            raise FileNotFoundError(f"operator file {name} does not exist")
        sources[name] = Path(name).read_text(encoding="utf-8")
    return sources


def prepare_worker(op_sources: Mapping[str, str]) -> None:
    """Ready a process that Ray has started to compute for us, before anything else in it.

    Args:
        op_sources: operator files, as from `read_op_files`.

    Raises:
        ValueError: an operator file fails; the message names it.
    """
    _sweep()
    keep_freed_memory()
    _die_of_fatal_signals()
    load_op_files(op_sources)


def _die_of_fatal_signals() -> None:
    """Take Ray's handlers of fatal signals away: without memory they abort in themselves, for ever, and write of it."""
    faulthandler.disable()  # which Ray enables before it, so that this puts the system's handlers back
    faulthandler.enable(2, all_threads=False)  # standard error, whoever replaced Python's


_loaded_op_files: set[str] = set()


def load_op_files(sources: Mapping[str, str]) -> None:
    """Run operator files once per process, so that their operators are registered.

    Raises:
        ValueError: a file fails; the message names it.
    """
    for name, source in sources.items():
        if name in _loaded_op_files:
            continue
        try:
            exec(compile(source, name, "exec"), {"__name__": Path(name).stem, "__file__": name})
        except Exception as error:  # whatever the user's file raises is reported as the file's
            raise ValueError(f"operator file {name} failed: {type(error).__name__}: {error}") from error
        _loaded_op_files.add(name)
