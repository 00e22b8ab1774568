"""Tables in an experiment's folder, and a page of several."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.config import load_config
from pipeline.experiments import load_experiment
from pipeline.experiments.cells import CellRecord, claim_experiment, write_record
from pipeline.experiments.report import write_page, write_results


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder of `resampling` with invented numbers: later models are better by 0.1 dB, a little less for seed 1."""
    folder = tmp_path / "finished"
    folder.mkdir()
    config = load_config("tiny")
    config.save(folder / "config.yaml")
    experiment = load_experiment("resampling")
    claim_experiment(folder, experiment, config)
    for stage in ("run", "measure"):
        (folder / stage).mkdir()
        for seed in (0, 1):
            for index, variant in enumerate(experiment.variants):
                values = {"psnr_db": 30 + (0.1 - 0.001 * seed) * index} if stage == "run" else {"measured_ms": 1.5}
                record = CellRecord(
                    stage=stage, variant=variant.name, seed=seed, values=values, started_at=1e9, seconds=60.0,
                    device="abacus, 1 thread",
                )  # fmt: skip
                write_record(folder, record)
    return folder


def test_results_are_written_as_markdown_csv_and_json(finished: Path) -> None:
    results = write_results(finished)
    text = (finished / "table.md").read_text()
    assert text == results.markdown
    assert "| Model-5: stride-2 convolution, pixel shuffle, concatenation | 30.40 ± 0.00 | 29.12 |" in text
    assert "sample standard deviation over the seeds 0, 1" in text
    assert "**The paper's finding is seen** here (claims: 4 seen)." in text
    assert "abacus, 1 thread; 2001-09-09; 1.0 min at work" in text
    table = pd.read_csv(finished / "table.csv")
    assert set(table["quantity"]) == {"psnr_db", "measured_ms"}
    stored = json.loads((finished / "results.json").read_text())
    assert stored["verdict"] == "seen"
    assert stored["seeds"] == [0, 1]
    assert stored["values"]["1"]["model-2"]["psnr_db"] == pytest.approx(30.099)
    assert [claim["verdict"] for claim in stored["claims"]] == ["seen"] * 4


def test_a_seed_with_a_missing_cell_is_left_out(finished: Path) -> None:
    (finished / "measure" / "model-3-seed1.json").unlink()
    assert write_results(finished).seeds == (0,)
    assert "One seed, 0: no spread." in (finished / "table.md").read_text()
    (finished / "run" / "model-1-seed0.json").unlink()
    with pytest.raises(ValueError, match="holds no seed of 'resampling' with all its cells"):
        write_results(finished)


def test_a_page_is_put_together_from_folders(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "experiments.md"
    write_page([finished], page)
    text = page.read_text()
    assert text.startswith("# The paper's experiments\n")
    assert "95 % interval of the mean paired difference" in text  # the rule
    assert (finished / "table.md").read_text() in text


def test_a_page_keeps_what_was_written_and_experiments_that_are_not_given(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "experiments.md"
    write_page([finished], page)
    before = page.read_text()
    rule = before.index("A claim is seen")
    page.write_text(before[:rule] + "How to read it.\n\n" + before[rule:] + "\n## denoisers: older\n\nA table.\n")
    write_page([finished], page)
    text = page.read_text()
    assert text.count("How to read it.\n\nA claim is seen") == text.count("## resampling: ") == 1
    assert text.endswith("\n## denoisers: older\n\nA table.\n")
    write_page([finished], page)
    assert page.read_text() == text


def test_the_command_has_the_settings_that_the_preset_lacks(finished: Path) -> None:
    config = load_config("tiny", ["experiment.data=[Set5, my photos]", "retrain.learning_rate=0.5"])
    config.save(finished / "config.yaml")
    command = "denoise-nas experiment resampling --config tiny --seeds 2"
    made = f"""`{command} retrain.learning_rate=0.5 'experiment.data=["Set5", "my photos"]'`; abacus"""
    assert made in write_results(finished).markdown


def test_what_cannot_be_put_on_a_page_is_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both hold the experiment 'resampling'"):
        write_page([finished, finished], tmp_path / "page.md")
    with pytest.raises(ValueError, match=r"must be a Markdown file \(.md\), got .*page.html"):
        write_page([finished], tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match="nowhere holds no experiment"):
        write_page([tmp_path / "nowhere"], tmp_path / "page.md")
