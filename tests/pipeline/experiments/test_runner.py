"""What a cell asks of Ray; how cells run is in `test_experiment_command`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.experiments import Experiment, Inputs
from pipeline.experiments.runner import run_cells


class _AskedError(Exception):
    """Raised in place of the start of a task."""


@pytest.mark.parametrize(
    ("device", "machines", "num_cpus"),
    [
        ("cpu", [{"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 4.0}], 4),
        ("cpu", [{"CPU": 64.0}], 16),
        ("cpu", [{"memory": 1.0}], 1),  # a head that computes nothing, before its workers are there
        ("cuda", [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}], 2),
    ],
)
def test_a_cell_fits_one_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_variants: Experiment, inputs: Inputs, device: str,
    machines: list[dict[str, float]], num_cpus: int,
) -> None:  # fmt: skip
    def refuse(**options: Any) -> None:
        raise _AskedError(options["num_cpus"])

    class Task:
        options = staticmethod(refuse)

    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 32.0, "GPU": 1.0}})
    total = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in ("CPU", "GPU")}
    monkeypatch.setattr("pipeline.experiments.runner.ray.put", lambda value: value)
    monkeypatch.setattr("pipeline.experiments.runner.ray.nodes", lambda: nodes)
    monkeypatch.setattr("pipeline.experiments.runner.ray.cluster_resources", lambda: total)
    monkeypatch.setattr("pipeline.experiments.runner.ray.remote", lambda function: Task)
    config = load_config("tiny", [f"device={device}", "retrain.threads_per_worker=16"])
    with pytest.raises(_AskedError) as asked:
        run_cells(
            replace(two_variants, run_alone=True), config, inputs, seeds=[0], folder=tmp_path,
            progress=lambda *_: None, on_record=lambda _: None,
        )  # fmt: skip
    assert asked.value.args == (num_cpus,)
