"""What does a killed process cost?

    python benchmarks/faults.py --output FOLDER --num 20

Every seed starts a `run` or a `collect` of the tiny preset, waits for a random milestone and a random moment more, and
kills with SIGKILL one of: the command, a process of a part search, one of the retraining or of a trial, a machine of a
cluster of three, the tracking server. A command that fails, or ends with something that MLflow lacks, is given again.
What is then on disk and in MLflow is compared with an undisturbed command of the same settings. Folders of seeds are
made anew.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import print_table, write_result

from ops.files import partial_files
from pipeline.checkpoint import load_checkpoint, load_weights
from pipeline.cluster import _ENVIRONMENT, _LOCAL_ENVIRONMENT
from pipeline.records import read_records
from pipeline.tracking import MlflowClient
from search_space import Genotype

VICTIMS = ("driver", "part", "worker", "node", "server")
COMMANDS = ("run", "collect")
NUM_ARCHITECTURES = 6
SEARCH_EPOCHS, TRIAL_EPOCHS, RETRAIN_EPOCHS = 60, 20, 12
# Files that a command leaves one after the other; a kill comes at most so many seconds after one of them. Some victims
# live for some of the stages alone.
MILESTONES: dict[Any, tuple[str, ...]] = {
    "run": ("config.yaml", "checkpoints/part1.pt", "search.pt", "train/*/checkpoint*", "model.safetensors"),
    "collect": ("collection.json", "supernet1.safetensors", "checkpoints/*/part1.pt", "records/*.json"),
    ("run", "part"): ("config.yaml", "checkpoints/part1.pt"),
    ("run", "worker"): ("search.pt", "train/*/checkpoint*"),
    ("run", "node"): ("checkpoints/part1.pt", "search.pt", "train/*/checkpoint*"),
    ("collect", "part"): ("checkpoints/*/part1.pt", "records/*.json"),
    ("collect", "worker"): ("checkpoints/*/part1.pt", "records/*.json"),
}
MOMENT_SECONDS = 2.0
PROCESSES = {
    ("run", "worker"): ("ray::RayTrainWorker",),
    ("collect", "worker"): ("ray::ResourceTrainable", "ray::CollectionTrial"),  # a trial at work, and one that waits
}
MAX_TRIES = 4  # of the command after its first
# A cluster of machines is reached from outside: it refuses whoever lacks this token, which the commands have.
ENVIRONMENT = _ENVIRONMENT | _LOCAL_ENVIRONMENT | {
    "OMP_NUM_THREADS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
}  # fmt: skip


@dataclass
class Case:
    """One seed: what was killed when, and what became of it."""

    seed: int
    command: str
    victim: str
    milestone: str
    killed: bool = False
    tries: int = 1
    started_again_by_driver: int = 0
    same_genotype: bool = False
    records_lost: int = 0
    records_doubled: int = 0
    epochs_repeated: int = 0
    trial_epochs_seen: int = 0
    partial_files: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Command:
    """The command of a case, as a process whose descendants are found by a mark in their environment."""

    def __init__(self, name: str, folder: Path, prices: Path, *more: str) -> None:
        self.name, self.folder = name, folder
        self.mark = f"DENOISE_NAS_CASE={folder}"
        size = {
            "run": [f"search.num_epochs={SEARCH_EPOCHS}", f"retrain.num_epochs={RETRAIN_EPOCHS}"],
            "collect": ["--num", str(NUM_ARCHITECTURES), "collect.shared_steps=60", "collect.proxy_size=32",
                        "ray.cpus_per_part=0.3", f"search.num_epochs={TRIAL_EPOCHS}",
                        "collect.vary.search.complexity_weight=[0.0, 0.5]"],
        }[name]  # fmt: skip
        self.arguments = [sys.executable, "-m", "pipeline.cli", name, "--config", "tiny", "--output", str(folder),
                          f"latency.table={prices}", *size, *more]  # fmt: skip

    def start(self) -> subprocess.Popen:
        """Give the command; what it prints is appended to a file beside its folder."""
        name, _, value = self.mark.partition("=")
        log = (self.folder.parent / f"{self.folder.name}.log").open("a")
        return subprocess.Popen(
            self.arguments, env=os.environ | ENVIRONMENT | {name: value}, stdout=log, stderr=log,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip

    @property
    def log(self) -> str:
        """What it printed, all times together."""
        return (self.folder.parent / f"{self.folder.name}.log").read_text()


class TrialEpochs(threading.Thread):
    """Looks at the checkpoints of a collection again and again: they are gone once there is a record."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._ended = threading.Event()
        self._seen: dict[tuple[str, int], float] = {}
        self._repeated: set[tuple[str, int]] = set()

    def run(self) -> None:
        """Note every epoch that another process made before: another time stands in the checkpoint."""
        while not self._ended.wait(0.05):
            with contextlib.suppress(FileNotFoundError):  # a record was written meanwhile
                for path in self._folder.glob("checkpoints/*/part*.pt"):
                    for epoch, metrics in load_checkpoint(path)["history"]:
                        entry = (f"{path.parent.name}/{path.name}", epoch)
                        if self._seen.setdefault(entry, metrics["seconds"]) != metrics["seconds"]:
                            self._repeated.add(entry)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()

    @property
    def most_repeated(self) -> int:
        """The largest count of any part search."""
        names = [name for name, _ in self._repeated]
        return max(map(names.count, names), default=0)

    @property
    def num_seen(self) -> int:
        """Epochs that were seen, of all part searches."""
        return len(self._seen)


def processes(titles: tuple[str, ...], mark: str) -> list[int]:
    """Return the processes whose title begins with one of `titles` and whose environment holds `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().decode(errors="replace").startswith(titles):
                if mark in (entry / "environ").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, *, seconds: float = 300) -> Any:
    """Return what `condition` gives once it gives anything, or None when the command ends first."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    return None


class Server:
    """A tracking server on a port of its own."""

    def __init__(self, database: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.database, self.uri = database, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.database}",
                   "--artifacts-destination", str(self.database.parent / "served"), "--workers", "1",
                   "--host", "127.0.0.1", "--port", str(self.port)]  # fmt: skip
        self.process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.3)
        raise RuntimeError("the tracking server did not start")

    def kill(self) -> None:
        """Kill it and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def machines() -> Iterator[tuple[str, list[Any], Any]]:
    """Start a head without processors and two machines with two each; yield address, the two, and the cluster."""
    os.environ.update(ENVIRONMENT)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 300 * 2**20})
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=300 * 2**20) for _ in range(2)]
    try:
        yield cluster.address, nodes, cluster
    finally:
        cluster.shutdown()


def carry_out(case: Case, command: Command, choice: random.Random, server: Server | None, cluster: Any) -> None:
    """Start the command, kill the victim, and give the command again until it succeeds."""
    moment = choice.uniform(0, MOMENT_SECONDS)
    process = command.start()
    pattern = case.milestone
    wait_for(lambda: next(command.folder.glob(pattern), None), process)
    if case.victim in ("part", "worker"):
        titles = PROCESSES.get((case.command, case.victim), ("ray::PartActor",))
        if pids := wait_for(lambda: processes(titles, command.mark), process):
            time.sleep(moment)
            pids = processes(titles, command.mark) or pids
            with contextlib.suppress(ProcessLookupError):
                os.kill(choice.choice(pids), signal.SIGKILL)
                case.killed = True
    else:
        time.sleep(moment)
        case.killed = process.poll() is None
        if case.victim == "driver":
            process.kill()
        elif case.victim == "server":
            assert server is not None
            server.kill()
            time.sleep(choice.uniform(0, 10))
            server.start()
        else:
            _, nodes, whole = cluster
            whole.remove_node(nodes[choice.randrange(len(nodes))], allow_graceful=False)
    while process.wait() != 0 or (command.folder / "mlflow_unsent").exists():
        case.partial_files += damaged(command.folder)
        if case.tries > MAX_TRIES:
            case.notes.append("given up")
            return
        case.tries += 1
        process = command.start()
    case.started_again_by_driver = command.log.count("started again")


def damaged(folder: Path) -> int:
    """Count files under a final name that cannot be read whole."""
    readers: list[tuple[str, Callable[[Path], Any]]] = [
        ("checkpoints/**/part*.pt", load_checkpoint), ("search.pt", load_checkpoint),
        ("*.safetensors", load_weights), ("genotype.json", Genotype.load),
        ("records/*.json", lambda path: json.loads(path.read_text())),
        ("summary.json", lambda path: json.loads(path.read_text())),
        ("train/*/checkpoint_manager_snapshot.json", lambda path: json.loads(path.read_text())),  # Ray's
    ]  # fmt: skip
    count = 0
    for pattern, read in readers:
        for path in folder.glob(pattern):
            try:
                read(path)
            except FileNotFoundError:
                continue  # a search that outlives its command for a moment
            except ValueError:
                count += 1
    return count


def compare(case: Case, folder: Path, reference: Path, uri: str) -> None:
    """Fill in what is on disk and in MLflow at the end, beside the undisturbed command."""
    client = MlflowClient(uri)
    run_id = (folder / "mlflow_run_id").read_text().strip()
    case.partial_files += damaged(folder) + len(partial_files(folder))
    if case.command == "run":
        case.same_genotype = Genotype.load(folder / "genotype.json") == Genotype.load(reference / "genotype.json")
        wanted = {(f"part{i}/l_dp_weights", e) for i in range(3) for e in range(1, SEARCH_EPOCHS + 1)}
        wanted |= {("retrain/loss", epoch) for epoch in range(1, RETRAIN_EPOCHS + 1)}
        names = sorted({name for name, _ in wanted})
        found = [(name, point.step) for name in names for point in client.get_metric_history(run_id, name)]
        case.epochs_repeated = repeated_epochs(folder)
    else:
        ids = [{r["key"]: r["genotype_id"] for r in read_records(place / "records")} for place in (folder, reference)]
        case.same_genotype = ids[0] == ids[1]
        wanted = set(ids[1])
        (experiment,) = [client.get_run(run_id).info.experiment_id]
        children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'", max_results=1000)
        found = [child.data.tags["record"] for child in children if child.info.status == "FINISHED"]
        case.records_lost += len(wanted - set(ids[0]))
    case.records_lost += len(wanted - set(found))
    case.records_doubled = len(found) - len(set(found))


def repeated_epochs(folder: Path) -> int:
    """Count epochs that were told first by a process whose work was lost: another time stands in the last checkpoint.

    The largest count of any part, or of the retraining.
    """
    told: dict[tuple[str, int], float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            told[name, row["step"]] = value
    states = {f"part{i}/seconds": load_checkpoint(folder / "checkpoints" / f"part{i}.pt") for i in range(3)}
    last = max(folder.glob("train/*/checkpoint*/state.pt"), key=lambda path: path.stat().st_mtime)
    states["retrain/seconds_per_step"] = load_checkpoint(last)
    counts = []
    for name, state in states.items():
        key = name.rpartition("/")[2]
        counts.append(sum(told.get((name, epoch)) != metrics[key] for epoch, metrics in state["history"]))
    return max(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and collections")
    parser.add_argument("--num", type=int, default=20, help="seeds; ten are every victim of both commands once")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args()
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    prices = output / "latency.parquet"
    local = f"sqlite:///{output / 'mlflow.db'}"
    references = {}
    for name in COMMANDS:
        references[name] = output / f"undisturbed-{name}"
        undisturbed = Command(name, references[name], prices, f"tracking.uri={local}")
        start = time.perf_counter()
        if undisturbed.start().wait() != 0:
            raise RuntimeError(f"the undisturbed {name} failed; see {references[name]}.log")
        print(f"undisturbed {name}: {time.perf_counter() - start:.0f} s", flush=True)
    cases: list[Case] = []
    for seed in range(options.first, options.first + options.num):
        choice = random.Random(seed)
        name, victim = COMMANDS[seed % 2], VICTIMS[seed // 2 % len(VICTIMS)]
        case = Case(seed=seed, command=name, victim=victim, milestone="")
        case.milestone = choice.choice(MILESTONES.get((name, victim), MILESTONES[name]))
        folder = output / f"seed{seed}-{name}-{victim}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.log").unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            server = cluster = None
            uri, more = local, []
            if victim == "server":
                server = Server(output / "served.db")
                stack.callback(server.kill)
                uri = server.uri
            elif victim == "node":
                cluster = stack.enter_context(machines())
                # The head has no processor to retrain with; all machines see this folder.
                more = [f"ray.address={cluster[0]}", f"ray.storage_path={folder / 'train'}"]
            trials = TrialEpochs(folder)
            trials.start()
            start = time.perf_counter()
            carry_out(case, Command(name, folder, prices, f"tracking.uri={uri}", *more), choice, server, cluster)
            case.seconds = round(time.perf_counter() - start, 1)
            if "given up" not in case.notes:
                compare(case, folder, references[name], uri)
            trials.end()
            if name == "collect":
                case.epochs_repeated, case.trial_epochs_seen = trials.most_repeated, trials.num_seen
        cases.append(case)
        print(vars(case), flush=True)
        path = write_result("faults", summary(cases), seeds=[case.seed for case in cases], num_threads=1)
    print_table(
        f"{len(cases)} seeds",
        ["victim", "command", "killed", "tries", "same", "lost", "doubled", "repeated", "partial"],
        [[c.victim, c.command, c.milestone if c.killed else "no", str(c.tries), str(c.same_genotype),
          str(c.records_lost), str(c.records_doubled), str(c.epochs_repeated), str(c.partial_files)] for c in cases],
    )  # fmt: skip
    print(path)


def summary(cases: list[Case]) -> dict[str, Any]:
    return {
        "kills": sum(case.killed for case in cases),
        "same_genotype": sum(case.same_genotype for case in cases),
        "records_lost": sum(case.records_lost for case in cases),
        "records_doubled": sum(case.records_doubled for case in cases),
        "most_epochs_repeated": max(case.epochs_repeated for case in cases),
        "partial_files": sum(case.partial_files for case in cases),
        "cases": [vars(case) for case in cases],
    }


if __name__ == "__main__":
    main()
