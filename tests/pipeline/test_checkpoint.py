import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.files import remove_partial_files, write_atomically, written_beside
from pipeline.checkpoint import (
    build_within,
    load_checkpoint,
    load_weights,
    restoring,
    save_checkpoint,
    save_weights,
)


@pytest.fixture
def state() -> dict[str, Any]:
    return {"epoch": 3, "name": "a", "weights": {"w": torch.arange(4.0)}, "rows": [1, (2.5, None)]}


def test_a_checkpoint_reads_back_equal(tmp_path: Path, state: dict[str, Any]) -> None:
    path = tmp_path / "new" / "folder" / "part0.pt"
    save_checkpoint(path, state)
    again = load_checkpoint(path)
    assert torch.equal(again["weights"].pop("w"), state["weights"].pop("w"))
    assert again == state
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("writer", ["checkpoint", "weights", "text"])
def test_a_file_that_is_being_replaced_is_whole_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """Power may fail right before the rename: the old content is still there, all of it."""
    path = tmp_path / "file"

    def write(value: float) -> None:
        if writer == "checkpoint":
            save_checkpoint(path, {"w": torch.tensor([value])})
        elif writer == "weights":
            save_weights(path, {"w": torch.tensor([value])})
        else:
            write_atomically(path, str(value))

    def die(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    write(1.0)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write(2.0)
    assert path.read_bytes() == before
    write(2.0)
    assert path.read_bytes() != before


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a full disk is /dev/full")
@pytest.mark.parametrize("writer", ["checkpoint", "weights", "text"])
def test_a_full_disk_is_one_error_that_names_the_file_and_leaves_nothing(tmp_path: Path, writer: str) -> None:
    """What is written beside the file goes to a device without space."""
    path = tmp_path / "part0.pt"
    path.write_text("before")
    (tmp_path / f".part0.{os.getpid()}.nas-partial.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device; mend that and the same command goes on: .*part0\.pt"):
        if writer == "checkpoint":
            save_checkpoint(path, {"w": torch.zeros(100_000)})
        elif writer == "weights":
            save_weights(path, {"w": torch.zeros(100_000)})
        else:
            write_atomically(path, "x" * 100_000)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "before"


@pytest.mark.parametrize("num_bytes", [100, 20_000, 300_000])
@pytest.mark.parametrize("writer", ["checkpoint", "weights", "text"])
def test_a_disk_that_becomes_full_while_writing_is_the_same_error(tmp_path: Path, writer: str, num_bytes: int) -> None:
    """A limit on the size of files takes the first bytes and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; mend that and the same command goes on: .*part0\.pt"):
            if writer == "checkpoint":
                save_checkpoint(tmp_path / "part0.pt", {"w": torch.zeros(50_000), "v": torch.zeros(50_000)})
            elif writer == "weights":
                save_weights(tmp_path / "part0.pt", {"w": torch.zeros(100_000)})
            else:
                write_atomically(tmp_path / "part0.pt", "x" * 400_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_can_write_in_is_named() -> None:
    with pytest.raises(OSError, match=r"the same command goes on: '/proc/self/folder/part0\.pt'"):
        save_checkpoint("/proc/self/folder/part0.pt", {"epoch": 1})


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_half_written_files_of_killed_processes_are_removed(tmp_path: Path, gone: int) -> None:
    kept = [".lock", "part0.pt", "run.2.json", ".zcompdump-host-5.9", f".file.{gone}.swp", f".genotype.json.{gone}",
            f".part0.{os.getpid()}.nas-partial.pt", f"part0.{gone}.nas-partial.pt"]  # fmt: skip
    (tmp_path / "below").mkdir()
    for name in [*kept, f".part0.{gone}.nas-partial.pt", f".mlflow_run_id.{gone}.nas-partial"]:
        (tmp_path / "below" / name).write_text("")
    remove_partial_files(tmp_path)
    assert sorted(path.name for path in (tmp_path / "below").iterdir()) == sorted(kept)


def test_what_a_killed_writer_left_is_what_is_removed(tmp_path: Path) -> None:
    """A process writes, and is gone before the rename; while it lives, its file is kept."""
    code = (
        "import os, sys; from ops.files import written_beside\n"
        "with written_beside(sys.argv[1]) as beside: beside.touch(); print(flush=True); input(); os._exit(9)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "part0.pt")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert writer.stdout is not None
    writer.stdout.readline()
    remove_partial_files(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]
    writer.communicate("\n")
    assert len(list(tmp_path.iterdir())) == 1
    remove_partial_files(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_cut_off_checkpoint_is_refused(tmp_path: Path, state: dict[str, Any], share: float) -> None:
    path = tmp_path / "part0.pt"
    save_checkpoint(path, state)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ValueError, match=r"checkpoint .*part0\.pt is damaged or not weights-only"):
        load_checkpoint(path)


class Unknown:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-the-pickle",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    save({"w": Unknown()}, path)
    with pytest.raises(ValueError, match=r"evil\.pt is damaged or not weights-only"):
        load_checkpoint(path)
    assert not (tmp_path / "made-by-the-pickle").exists()


def test_an_archive_that_claims_more_than_its_file_is_refused(tmp_path: Path) -> None:
    """A compressed entry of zeros: 64 MB that would be allocated for a file of 64 kB."""
    path = tmp_path / "bomb.pt"
    save_checkpoint(path, {"w": torch.zeros(1)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/1", bytes(64 * 2**20))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.pt is damaged or not weights-only: .*claim 67\d+ bytes in a file of"):
        load_checkpoint(path)


def test_weights_that_claim_more_than_their_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.safetensors"
    header = {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(ValueError, match=r"claims\.safetensors cannot be read"):
        load_weights(path)
    path.write_bytes((2**40).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"claims\.safetensors cannot be read"):
        load_weights(path)


def test_a_module_much_larger_than_its_file_is_not_built() -> None:
    tensors = {"w": torch.zeros(1).expand(10**6, 10**6)}  # a shape that four bytes stand for
    with pytest.raises(ValueError, match=r"mine\.pth: its sizes ask for 1000001000000 numbers, the file holds 1"):
        build_within(lambda: torch.nn.Linear(10**6, 10**6), tensors, "mine.pth")
    assert build_within(lambda: torch.nn.Linear(2, 2), tensors, "mine.pth").weight.shape == (2, 2)


def test_a_state_of_other_work_is_one_error_with_its_file() -> None:
    with pytest.raises(
        ValueError, match=r"checkpoint part0\.pt does not hold the state of this work: KeyError: 'epoch'"
    ):
        with restoring("part0.pt"):
            {}["epoch"]


def test_a_checkpoint_must_hold_a_dictionary(tmp_path: Path) -> None:
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match=r"tensor\.pt must hold a dictionary, got Tensor"):
        load_checkpoint(tmp_path / "tensor.pt")


def test_missing_files_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint .*none.pt does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="weights .*none.safetensors do not exist"):
        load_weights(tmp_path / "none.safetensors")


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    save_weights(tmp_path / "w.safetensors", {"a": shared, "b": shared, "c": shared.clone()})
    found = load_weights(tmp_path / "w.safetensors")
    assert list(found) == ["a", "c"]
    assert torch.equal(found["a"], shared)


def test_channels_last_weights_read_back_equal(tmp_path: Path, generator: torch.Generator) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w.safetensors", {"w": weight})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["w"], weight)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.zeros(100)})
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"weights .*w\.safetensors cannot be read"):
        load_weights(path)
    path.write_text("not safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(path)


def test_any_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_beside(path) as beside:
        beside.write_text("half")
        raise ZeroDivisionError
    assert [found.name for found in tmp_path.iterdir()] == ["result.txt"]
    assert path.read_text() == "old"
