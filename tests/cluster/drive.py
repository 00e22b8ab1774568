"""Drive a real cluster of three hosts from `ray up` to `ray down`, with the `ray_cluster.yaml` that users get.

    python tests/cluster/drive.py [FOLDER] [--root ROOT]

Ends with 0 when everything was as promised, and leaves nothing but FOLDER: the hosts' files and what every command
printed. Only addresses, user, key and the installation are replaced: the hosts use the interpreter that runs this.

With `--root`, the hosts are fresh machines, each with a copy of the file system ROOT, for example one that was made by
`debootstrap --include=python3-venv,openssh-server,rsync,procps,ca-certificates`, and the installation is done as it
stands, over the network of this machine (which takes `nft`).
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from hosts import REPOSITORY, Host, in_namespaces, make_network, start_host, take_home, uplink, why_not

NUM_WORKERS = 2
_SECONDS_TO_INSTALL = 1200.0
_IS_INSIDE = "DENOISE_NAS_CLUSTER_INSIDE"
# One part per host: each needs more than half of the two cores that every host believes to have.
_ONE_PART_PER_HOST = f"ray.cpus_per_part={0.75 * (os.cpu_count() or 1):g}"


class PromiseError(Exception):
    """Something was not as promised."""


def main() -> int:
    """Drive the cluster in namespaces of its own, which end whatever happens."""
    if reason := why_not():
        print(f"no cluster here: {reason}", file=sys.stderr)
        return 77
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("cluster-drive"))
    parser.add_argument("--root", type=Path, help="root file system of fresh machines")
    options = parser.parse_args()
    if os.environ.get(_IS_INSIDE):
        return _drive(options.folder, options.root)
    if options.root is not None and not (options.root / "etc").is_dir():
        parser.error(f"--root must be a root file system, got {options.root}")
    if options.root is not None and shutil.which("nft") is None:
        parser.error("--root takes nft, which is not installed")
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(folder)] + ([] if options.root is None else ["--root", str(options.root.absolute())])
    command = in_namespaces([sys.executable, __file__, *arguments])
    with subprocess.Popen(command, env=os.environ | {_IS_INSIDE: "1"}) as process:
        try:
            with uplink(process.pid) if options.root else contextlib.nullcontext():
                return process.wait()
        except BaseException:
            process.terminate()  # its namespaces end with it
            raise


def _drive(folder: Path, root: Path | None) -> int:
    client = folder / "client"
    (client / "home").mkdir(parents=True)
    key = client / "home" / "cluster_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public_key = key.with_suffix(".pub").read_text()
    make_network()
    names = ["head", *(f"worker{i}" for i in range(NUM_WORKERS))]
    hosts = [start_host(name, i + 2, folder / name, public_key, root=root) for i, name in enumerate(names)]
    with (folder / "commands.log").open("w", buffering=1) as log:
        take_home(client)
        try:
            _walk(Client(log, hosts, is_installing=root is not None))
        except PromiseError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    return 0


class Client:
    """The machine that commands are typed on: runs them, times them, and keeps what they print."""

    def __init__(self, log, hosts: list[Host], *, is_installing: bool) -> None:
        self.log = log
        self.hosts = hosts
        self.seconds_to_install = _SECONDS_TO_INSTALL if is_installing else 0.0
        self.yaml = Path.home() / "ray_cluster.yaml"
        self.yaml.write_text(yaml.safe_dump(cluster_for(hosts, is_installing=is_installing), sort_keys=False))
        bin_folder = str(Path(sys.executable).parent)
        self.environment = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(Path.home()), "LC_ALL": "C.UTF-8",
            "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def run(self, *command: str, expect: int = 0, timeout: float = 300) -> str:
        """Run a command in the checkout and return what it printed.

        Raises:
            PromiseError: another exit status than expected, or too slow.
        """
        start = time.monotonic()
        self.log.write(f"$ {' '.join(command)}\n")
        try:
            done = subprocess.run(
                command, env=self.environment, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=timeout, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            self.log.write(f"{error.output}\n")
            raise PromiseError(f"{' '.join(command)} took longer than {timeout:.0f} s") from None
        seconds = time.monotonic() - start
        self.log.write(f"{done.stdout}[exit {done.returncode} after {seconds:.1f} s]\n\n")
        shown = " ".join(command).replace(str(self.yaml), "ray_cluster.yaml").strip().split("\n")[0]
        print(f"{seconds:6.1f} s  {shown}", flush=True)
        if done.returncode != expect:
            raise PromiseError(f"{shown} ended with {done.returncode}, not {expect}:\n{done.stdout[-3000:]}")
        return done.stdout

    @contextlib.contextmanager
    def without_token(self) -> Iterator[None]:
        """Be a stranger for a while."""
        before = dict(self.environment)
        self.environment |= {"RAY_AUTH_MODE": "disabled"}
        yield
        self.environment = before

    def ray(self, command: str, *arguments: str, **options) -> str:
        """Run `ray COMMAND ray_cluster.yaml ARGUMENTS`."""
        return self.run("ray", command, str(self.yaml), *arguments, **options)


def cluster_for(hosts: list[Host], *, is_installing: bool) -> dict:
    """Return `ray_cluster.yaml` for these hosts, with this environment in place of an installation or as it stands."""
    cluster = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
    head, *workers = hosts
    cluster["provider"] |= {"head_ip": head.address, "worker_ips": [host.address for host in workers]}
    cluster["auth"] = {"ssh_user": os.environ.get("USER", "root"), "ssh_private_key": "~/cluster_key"}
    if is_installing:
        return cluster
    commands = [command for command in cluster["setup_commands"] if "pip install" not in command]
    link = f"ln -sfn {sys.prefix} ~/denoise-nas/.venv"
    cluster["setup_commands"] = [
        link if "-m venv" in command else command for command in commands
    ] + ["echo 'export PYTHONPATH=$HOME/denoise-nas' >> ~/denoise-nas/environment"]  # fmt: skip
    return cluster


def _walk(client: Client) -> None:
    """Do what docs/cluster.md tells, and check what it promises."""
    head = client.hosts[0]
    client.run("ray", "get-auth-token", "--generate")
    client.ray("up", "--yes", timeout=300 + client.seconds_to_install)
    _wait_for_nodes(client)
    _check_who_gets_in(client)

    # One architecture, priced for a device that none of the hosts is, each part on another host.
    client.run("denoise-nas", "latency", "build", "--config", "tiny", "--output", str(Path.home() / "here"))
    client.run("python", "-c", _SLOW_PHONE.format(home=Path.home()))
    client.ray("rsync-up", f"{Path.home()}/phone.parquet", "~/phone.parquet")
    said = client.ray(
        "submit", "pipeline/cli.py", "--", "run", "--config", "tiny", "--output", "runs/tiny", "--verbose",
        _ONE_PART_PER_HOST, "latency.table=phone.parquet", "latency.device_name=phone",
    )  # fmt: skip
    places = dict(re.findall(r"part (\d) is searched on \S+ \((\S+)\)", said))
    _promise(sorted(places) == ["0", "1", "2"] and len(set(places.values())) == 3, f"one part per host, got {places}")

    client.ray("submit", "pipeline/cli.py", "--", "collect", "--config", "tiny", "--output", "runs/many", "--num", "2",
               "--random", "1", _ONE_PART_PER_HOST)  # fmt: skip
    client.ray("exec", "ray job submit -- denoise-nas run --config tiny --output runs/job "
               "latency.table=phone.parquet latency.device_name=phone")  # fmt: skip

    client.ray("rsync-down", "~/runs/", f"{Path.home()}/runs/")
    client.ray("rsync-down", "~/tracking/", f"{Path.home()}/tracking/")
    client.run("denoise-nas", "analyze", f"{Path.home()}/runs/many")
    _check_results(Path.home())
    client.ray("down", "--yes")
    for host in client.hosts:
        _wait_until_empty(host)
    print(f"nothing runs on {', '.join(host.name for host in client.hosts)}; files of {head.name}: {head.folder}")


# A device of another name, a thousand times as slow.
_SLOW_PHONE = """
from dataclasses import replace
from pathlib import Path
from latency import LatencyTable
from pipeline.config import load_config
from pipeline.run import open_run
from search_space import space_op_specs

home = Path("{home}")
here = LatencyTable.load(home / "here/latency.parquet", expected=None)
phone = LatencyTable(replace(here.device_info, device_name="phone"))
config = load_config("tiny", ["output=" + str(home / "here")])
size = config.latency.image_size
for spec in space_op_specs(open_run(config).space, height=size, width=size):
    timing = here.timing(spec)
    phone.add(spec, replace(timing, median_ms=1000 * timing.median_ms))
phone.save(home / "phone.parquet")
"""


def _check_results(home: Path) -> None:
    """Check what came home: two runs, a collection, what `analyze` made of it, and the tracking server's database."""
    summary, of_job = (json.loads((home / f"runs/{name}/summary.json").read_text()) for name in ("tiny", "job"))
    _promise(of_job["genotype_id"] == summary["genotype_id"], f"the same found by a job, got {of_job['genotype_id']}")
    _promise((home / "runs/many/study/report.html").exists(), "a report of the collection")
    _promise(summary["predicted_device"] == "phone", f"priced for the phone, got {summary['predicted_device']}")
    ratio = summary["predicted_latency_ms"] / summary["measured_latency_ms"]
    _promise(ratio > 100, f"the phone's prices to be used, got {ratio:.1f} times the host's")
    checkpoints = sorted(path.name for path in (home / "runs/tiny/checkpoints").iterdir())
    _promise(checkpoints == ["part0.pt", "part1.pt", "part2.pt"], f"three checkpoints, got {checkpoints}")
    records = sorted(path.name for path in (home / "runs/many/records").iterdir())
    _promise(len(records) == 3, f"three records, got {records}")
    with sqlite3.connect(home / "tracking/mlflow.db") as database:
        statuses = [status for (status,) in database.execute("SELECT status FROM runs")]
        costs = database.execute(
            "SELECT key, MIN(value) FROM metrics WHERE key LIKE 'part_/expected_cost' GROUP BY key"
        )
        expected = dict(costs.fetchall())
    _promise(statuses == ["FINISHED"] * 6, f"two runs and a collection of three recorded and finished, got {statuses}")
    _promise(
        len(expected) == 3 and min(expected.values()) > 10, f"every part to see the phone's prices, got {expected}"
    )


def _check_who_gets_in(client: Client) -> None:
    """Check that nobody gets in from another machine without the token."""
    head = client.hosts[0]
    for port, what in ((8265, "dashboard"), (5000, "tracking server")):
        try:
            socket.create_connection((head.address, port), timeout=5).close()
        except ConnectionRefusedError:
            continue
        raise PromiseError(f"the {what} listens beyond loopback")
    check = ("ray", "health-check", "--address", f"{head.address}:6379")
    client.run(*check)
    client.log.write("without the token:\n")
    with client.without_token():
        client.run(*check, expect=1)
    client.log.write(_inside(head, "ss", "-ltnpH"))


def _promise(is_kept: bool, promise: str) -> None:
    if not is_kept:
        raise PromiseError(f"expected {promise}")


def _wait_for_nodes(client: Client) -> None:
    """Wait until the workers have joined: `ray up` returns when the head is ready."""
    patience = 180 + client.seconds_to_install
    script = (
        f"import ray, time; ray.init(logging_level=40); end = time.time() + {patience}\n"
        f"while sum(n['Alive'] for n in ray.nodes()) < {NUM_WORKERS + 1} and time.time() < end: time.sleep(1)\n"
        "print('NODES', sum(n['Alive'] for n in ray.nodes()))"
    )
    if f"NODES {NUM_WORKERS + 1}" not in client.ray("exec", f'python -c "{script}"', timeout=patience + 60):
        raise PromiseError(f"the workers did not join within {patience:.0f} s")


def _wait_until_empty(host: Host) -> None:
    """Wait until nothing runs on a host but its sshd: workers end by themselves when they miss the head."""
    deadline = time.monotonic() + 150
    while left := _processes(host):
        if time.monotonic() > deadline:
            raise PromiseError(f"{host.name} still runs {left}")
        time.sleep(2)


def _processes(host: Host) -> list[str]:
    """Return the commands of what runs on a host besides its sshd."""
    lines = _inside(host, "ps", "-eo", "args", "--no-headers").splitlines()
    return [line[:200] for line in lines if not line.startswith(("sshd:", "/usr/sbin/sshd", "ps -eo"))]


def _inside(host: Host, *command: str) -> str:
    entered = ["nsenter", "--target", _first_process(host), "--pid", "--mount", "--net", *command]
    return subprocess.run(entered, capture_output=True, text=True, check=True).stdout


def _first_process(host: Host) -> str:
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children").read_text().split()
    return children[0]


if __name__ == "__main__":
    sys.exit(main())
