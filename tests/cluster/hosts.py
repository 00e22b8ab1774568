"""Machines to try a cluster on: network, process and mount namespaces of this one, each with its own sshd.

Used by `drive.py`. A host has an address, a home, a /tmp and processes of its own: `ray stop` on one of them ends
nothing elsewhere, files of one are not those of another, and its processes end with its first one.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

GATEWAY = "10.77.0.1"
REPOSITORY = Path(__file__).resolve().parents[2]
_PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "mount")
_SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # sshd is not on everybody's
_NAMESPACES = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
_SSHD_CONFIG = """
ListenAddress {address}
HostKey {home}/host_key
AuthorizedKeysFile {home}/authorized_keys
PasswordAuthentication no
StrictModes no
PidFile none
"""


def why_not() -> str | None:
    """Return what this machine lacks for hosts, or None."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_SEARCH_PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if subprocess.run([*_NAMESPACES, "true"], capture_output=True).returncode:
        return "namespaces cannot be made here, which takes root"
    return None


def in_namespaces(command: list[str]) -> list[str]:
    """Return `command` run as the first process of namespaces that end with it."""
    return [*_NAMESPACES, *command]


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine of the cluster; `folder` holds its home and its /tmp."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen


def make_network() -> None:
    """Make the network that hosts will be on; this side has the address `GATEWAY`."""
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "lan", "type", "bridge")
    _run("ip", "address", "add", f"{GATEWAY}/24", "dev", "lan")
    _run("ip", "link", "set", "lan", "up")


def start_host(name: str, number: int, folder: Path, public_key: str) -> Host:
    """Start a host with the address 10.77.0.`number`, which lets in whoever has the key."""
    address = f"10.77.0.{number}"
    home = folder / "home"
    home.mkdir(parents=True)
    (home / "authorized_keys").write_text(public_key)
    (home / "sshd_config").write_text(_SSHD_CONFIG.format(address=address, home=Path.home()))
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "host_key"))
    with (folder / "sshd.log").open("w") as log:
        process = subprocess.Popen(
            in_namespaces([sys.executable, __file__, name, address, str(folder)]), stdout=log, stderr=log
        )
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{process.pid}/ns/net") == own:
        time.sleep(0.01)
    _run("ip", "link", "add", f"lan{number}", "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
    _run("ip", "link", "set", f"lan{number}", "master", "lan", "up")
    return Host(name=name, address=address, folder=folder, process=process)


def take_home(folder: Path) -> None:
    """Lay `folder`/home over the user's home and `folder`/tmp over /tmp, but keep interpreter and checkout visible."""
    home = Path.home()
    places = {home: folder / "home", Path("/tmp"): folder / "tmp"}
    for needed in {Path(sys.base_prefix), Path(sys.prefix), REPOSITORY}:
        for place, own in places.items():
            if needed.is_relative_to(place):
                copy = own / needed.relative_to(place)
                copy.mkdir(parents=True, exist_ok=True)
                _run("mount", "--rbind", str(needed), str(copy))
    for place, own in places.items():
        own.mkdir(exist_ok=True)
        _run("mount", "--rbind", str(own), str(place))


def _be_host(name: str, address: str, folder: Path) -> None:
    """Set this process's namespaces up as a host and become its sshd."""
    _run("hostname", name)
    while subprocess.run(["ip", "link", "show", "eth0"], capture_output=True).returncode:
        time.sleep(0.01)
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    _run("ip", "link", "set", "eth0", "up")
    _run("ip", "route", "add", "default", "via", GATEWAY)
    for place in ("/run", "/dev/shm"):
        _run("mount", "-t", "tmpfs", "tmpfs", place)
    Path("/run/sshd").mkdir()
    take_home(folder)
    sshd = shutil.which("sshd", path=_SEARCH_PATH)
    assert sshd is not None
    os.chdir("/")
    os.execv(sshd, [sshd, "-D", "-e", "-f", str(Path.home() / "sshd_config")])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, env=os.environ | {"PATH": _SEARCH_PATH})


if __name__ == "__main__":
    _be_host(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
