"""What a run leaves for people, where some of its numbers are not finite."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.config import load_config
from pipeline.summary import record_run, write_summary


class Recorder:
    """Keeps what a tracker would be told."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.description = ""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics = metrics

    def set_description(self, text: str) -> None:
        self.description = text

    def rename(self, name: str) -> None:
        pass


def test_pairs_without_noise_leave_null_which_is_recorded_again(tmp_path: Path) -> None:
    """Their noisy PSNR is infinite; JSON has no such number. The same command reads the file and records it."""
    scores = {"noisy": 1.0, "prior": 0.9, "denoised": 0.9}
    summary: dict[str, Any] = {
        "genotype_id": "abc", "psnr_db": {"noisy": math.inf, "prior": 40.0, "denoised": 41.0}, "ssim": scores,
        "num_parameters": 1000, "prior_num_parameters": 2000, "macs": 10, "measured_latency_ms": 1.0,
        "prior_latency_ms": 2.0, "latency_image_size": 32, "predicted_latency_ms": 1.5, "seconds": {"total": 3.0},
        "entropies": [{"alpha": math.nan}], "images": [{"name": "a", "noisy_psnr_db": math.inf}],
    }  # fmt: skip
    write_summary(tmp_path, summary)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["psnr_db"] == {"noisy": None, "prior": 40.0, "denoised": 41.0}
    assert found["entropies"] == [{"alpha": None}] and found["images"] == [{"name": "a", "noisy_psnr_db": None}]
    run: Any = SimpleNamespace(config=load_config("tiny"), path=lambda name: tmp_path / "none" / name)
    tracker: Any = Recorder()
    record_run(run, tracker, found)
    assert "psnr_db_noisy" not in tracker.metrics and tracker.metrics["psnr_db"] == 41.0
    assert "| PSNR, dB | inf | 40.00 | 41.00 |" in tracker.description
