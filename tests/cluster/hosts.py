"""Machines to try a cluster on: network, process and mount namespaces of this one, each with its own sshd.

Used by `drive.py`. A host has an address, a home, a /tmp and processes of its own: `ray stop` on one of them ends
nothing elsewhere, files of one are not those of another, and its processes end with its first one. Given a root file
system, it has nothing of this machine at all, and `uplink` lets it reach what this machine reaches.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GATEWAY = "10.77.0.1"
_UPLINK = ("10.77.1.1", "10.77.1.2")  # this machine and the gateway
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
    """One machine of the cluster; `folder` holds its home and its /tmp, or all of its files."""

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


@contextlib.contextmanager
def uplink(pid: int) -> Iterator[None]:
    """Let the network of hosts, whose gateway is process `pid`, reach what this machine reaches, for a while."""
    here, there = _UPLINK
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    inside = ["nsenter", "--target", str(pid), "--net"]
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pid}/ns/net") == own:
        time.sleep(0.01)
    try:
        _run("ip", "link", "add", "nas-up", "type", "veth", "peer", "name", "uplink", "netns", str(pid))
        _run("ip", "address", "add", f"{here}/30", "dev", "nas-up")
        _run("ip", "link", "set", "nas-up", "up")
        _run(*inside, "ip", "address", "add", f"{there}/30", "dev", "uplink")
        _run(*inside, "ip", "link", "set", "uplink", "up")
        _run(*inside, "ip", "route", "add", "default", "via", here)
        _run(*inside, "sh", "-c", f"echo 1 > {forwarding}")
        _run("ip", "route", "add", "10.77.0.0/24", "via", there)
        forwarding.write_text("1")
        _run("nft", "add table ip nas-up")
        _run("nft", "add chain ip nas-up out { type nat hook postrouting priority 100 ; }")
        _run("nft", "add rule ip nas-up out ip saddr 10.77.0.0/16 masquerade")
        yield
    finally:
        forwarding.write_text(before)
        subprocess.run(["nft", "delete table ip nas-up"], stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "delete", "nas-up"], stderr=subprocess.DEVNULL)


def start_host(name: str, number: int, folder: Path, public_key: str, *, root: Path | None = None) -> Host:
    """Start a host with the address 10.77.0.`number`, which lets in whoever has the key.

    Args:
        name: of the host.
        number: of its address.
        folder: for its files.
        public_key: of whoever may log in.
        root: file system with sshd of which the host gets a copy as its own; by default it sees this machine's files,
            but for home and /tmp.
    """
    address = f"10.77.0.{number}"
    home = folder / "home"
    if root is not None:
        folder.mkdir(parents=True)
        _run("cp", "--archive", "--reflink=auto", str(root), str(folder / "root"))
        home = folder / "root" / Path.home().relative_to("/")
    home.mkdir(parents=True, exist_ok=True)
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
    root = folder / "root"
    has_own_root = root.exists()
    if has_own_root:
        _change_root(root)
    for place in ("/run", "/dev/shm"):
        _run("mount", "-t", "tmpfs", "tmpfs", place)
    Path("/run/sshd").mkdir()
    if not has_own_root:
        take_home(folder)
    sshd = shutil.which("sshd", path=_SEARCH_PATH)
    assert sshd is not None
    os.chdir("/")
    os.execv(sshd, [sshd, "-D", "-e", "-f", str(Path.home() / "sshd_config")])


def _change_root(root: Path) -> None:
    """Make `root` the whole file system of this process; devices and the resolver are those of this machine."""
    for place in ("dev", "sys", "proc"):
        _run("mount", "--rbind", f"/{place}", str(root / place))
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    os.chroot(root)
    os.chdir("/")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, env=os.environ | {"PATH": _SEARCH_PATH})


if __name__ == "__main__":
    _be_host(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
