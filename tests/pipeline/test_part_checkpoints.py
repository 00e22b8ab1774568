"""Where a part search keeps its checkpoint; that it travels between hosts is exercised by `tests/cluster`."""

import os
from pathlib import Path

import pytest

from ops import OpSpec
from pipeline.config import load_config
from pipeline.part_actors import PartJob
from pipeline.part_checkpoints import checkpoint_file
from search_space import CostModel, SearchSpace


def make_job(space: SearchSpace, path: Path | None, checkpoint: bytes = b"") -> PartJob:
    def price(spec: OpSpec) -> float:
        return 1.0

    return PartJob(
        config=load_config("tiny"), space=space, costs=CostModel(0, space, price, height=32, width=32), budget=None,
        checkpoint_path=None if path is None else str(path), home="a node",
        checkpoint=checkpoint,
    )  # fmt: skip


def test_a_part_on_the_drivers_node_writes_into_the_runs_folder(tiny_space: SearchSpace, tmp_path: Path) -> None:
    with checkpoint_file(make_job(tiny_space, tmp_path / "part0.pt"), is_home=True) as path:
        assert path == tmp_path / "part0.pt"


def test_a_part_without_checkpoints_has_no_file(tiny_space: SearchSpace) -> None:
    with checkpoint_file(make_job(tiny_space, None), is_home=False) as path:
        assert path is None


def test_a_part_elsewhere_finds_what_was_sent_and_leaves_nothing(tiny_space: SearchSpace, tmp_path: Path) -> None:
    with checkpoint_file(make_job(tiny_space, tmp_path / "part0.pt", b"three epochs"), is_home=False) as path:
        assert path is not None and path.parent.name.startswith(f"nas-ray-{os.getpid()}-")
        assert path.read_bytes() == b"three epochs"
    assert not path.parent.exists()
    assert not (tmp_path / "part0.pt").exists()


def test_a_part_elsewhere_that_is_new_begins_without_a_file(tiny_space: SearchSpace, tmp_path: Path) -> None:
    with checkpoint_file(make_job(tiny_space, tmp_path / "part0.pt"), is_home=False) as path:
        assert path is not None and not path.exists() and path.parent.is_dir()


@pytest.mark.parametrize("kind", [FloatingPointError, ValueError])
def test_errors_of_a_part_elsewhere_name_the_file_at_home(
    tiny_space: SearchSpace, tmp_path: Path, kind: type[Exception]
) -> None:
    home = tmp_path / "part0.pt"
    with pytest.raises(kind, match=rf"^epoch 3: bad; last good checkpoint: {home}, epoch 2$"):
        with checkpoint_file(make_job(tiny_space, home), is_home=False) as path:
            raise kind(f"epoch 3: bad; last good checkpoint: {path}, epoch 2")
