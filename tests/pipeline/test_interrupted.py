"""Commands that are interrupted politely, by Ctrl-C or SIGTERM, while Ray works for them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.tracking import MlflowClient

RUN = "run", "--config", "tiny", "retrain.num_epochs=12"
COLLECT = "collect", "--config", "tiny", "--num", "2", "collect.shared_steps=6", "collect.proxy_size=32"


def heed_ctrl_c() -> None:
    """A shell has what it starts in the background ignore Ctrl-C, tests and all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "milestone", "number"),
    [
        pytest.param(RUN, "checkpoints/part1.pt", signal.SIGTERM, id="search"),
        pytest.param(RUN, "train/*/checkpoint*", signal.SIGINT, id="retrain", marks=pytest.mark.faults),
        pytest.param(COLLECT, "checkpoints/*/part1.pt", signal.SIGINT, id="collect", marks=pytest.mark.faults),
    ],
)
def test_an_interrupted_command_says_so_and_goes_on(
    tmp_path: Path, command: tuple[str, ...], milestone: str, number: signal.Signals
) -> None:
    folder = tmp_path / "interrupted"
    arguments = [*command, "--output", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments], cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not list(folder.glob(milestone)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
    assert "Traceback" not in errors
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    statuses = {run.info.status for run in runs}
    assert "KILLED" in statuses and "RUNNING" not in statuses
    assert main(arguments) == 0
