from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config import Config, list_presets, load_config
from search_space import DEFAULT_OPS


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert Path(config.output).name == name


@pytest.mark.parametrize("name", ["paper-synthetic", "paper-sidd"])
def test_the_paper_presets_carry_the_papers_numbers(name: str) -> None:
    config = load_config(name)
    assert (config.space.num_resolutions, config.space.num_layers) == (3, 6)
    assert config.space.candidate_ops == DEFAULT_OPS
    search, retrain = config.search, config.retrain
    assert (search.patch_size, search.batch_size, search.num_epochs) == (128, 16, 150)
    assert (search.weight_learning_rate, search.arch_learning_rate) == (2e-4, 1e-4)
    assert search.estimator == "sampled"
    assert (retrain.patch_size, retrain.batch_size, retrain.num_epochs) == (128, 32, 300)
    assert (retrain.learning_rate, retrain.final_learning_rate) == (2e-4, 1e-6)
    assert retrain.distill_share * retrain.num_epochs == 60
    assert retrain.start == "scratch"
    assert (config.latency.image_size, config.latency.max_repeats) == (256, 1000)
    assert config.evaluate.image_size == 256


def test_the_paper_presets_divide_the_data_as_the_paper() -> None:
    synthetic = load_config("paper-synthetic")
    assert synthetic.noise.model == "niid"
    assert round(5576 * synthetic.data.architecture_share) == 2576
    assert load_config("paper-sidd").data.architecture_share == 0.5


def test_overrides_are_parsed_as_yaml() -> None:
    config = load_config(
        "tiny",
        ["seed=7", "search.weight_learning_rate=1e-4", "search.target_ms=null", "space.candidate_ops=[skip, conv_d1]"],
    )
    assert config.seed == 7
    assert config.search.weight_learning_rate == 1e-4
    assert config.search.target_ms is None
    assert config.space.candidate_ops == ("skip", "conv_d1")


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "mine.yaml").write_text("output: ~/runs/x\nspace: {op_files: [~/mine.py, ops/yours.py]}")
    settings = ["data.cache=~/decoded", "prior.weights=~/prior.pth", "latency.table=~/table.parquet",
                "collect.supernets=~/collection", "ray.storage_path=~/checkpoints"]  # fmt: skip
    config = load_config(str(tmp_path / "mine.yaml"), settings)
    assert config.output == "/home/me/runs/x"
    assert config.space.op_files == ("/home/me/mine.py", "ops/yours.py")
    assert (config.data.cache, config.prior.weights) == ("/home/me/decoded", "/home/me/prior.pth")
    assert (config.latency.table, config.collect.supernets) == ("/home/me/table.parquet", "/home/me/collection")
    assert config.ray.storage_path == "/home/me/checkpoints"
    assert load_config("tiny", ["ray.storage_path='s3://mine/~/x'"]).ray.storage_path == "s3://mine/~/x"


def test_sigmas_are_converted_to_the_unit_scale() -> None:
    noise = load_config("tiny", ["noise.sigma_255=[0, 51]", "noise.validation_sigma_255=25.5"]).noise
    assert noise.sigma_range == pytest.approx((0, 0.2))
    assert noise.validation_sigma == pytest.approx(0.1)
    assert load_config("tiny", ["noise.sigma_255=[0, 51]"]).noise.validation_sigma == pytest.approx(0.1)  # the middle


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serach.num_epochs=3", r"unknown key `serach`; known here are .*search"),
        ("search.epochs=3", r"unknown key `search\.epochs`; known here are .*num_epochs"),
        ("search.num_epochs=many", r"`search\.num_epochs` must be of type int, got 'many'"),
        ("search.num_epochs=2.5", r"`search\.num_epochs` must be of type int, got 2\.5"),
        ("search.num_epochs=true", r"`search\.num_epochs` must be of type int, got True"),
        ("search.num_epochs=null", r"`search\.num_epochs` must be of type int, got None"),
        ("search.temperature=hot", r"`search\.temperature` must be a number, got 'hot'"),
        ("search=3", r"`search` must hold keys and values, got 3"),
        ("space.candidate_ops=3", r"`space\.candidate_ops` must be a list, got 3"),
        ("search.num_epochs=0", r"`search\.num_epochs` must be at least 1, got 0"),
        ("search.patch_size=50", r"`search\.patch_size` must be a multiple of 4, got 50"),
        ("search.batch_size=12", r"`search\.num_patches` must be at least two batches"),
        ("search.weight_learning_rate=-1", r"`search\.weight_learning_rate` must be above 0"),
        ("search.arch_learning_rate=.nan", r"`search\.arch_learning_rate` must be above 0"),
        ("search.estimator=guess", r"`search\.estimator` must be one of .*sampled.*, got 'guess'"),
        ("search.cost=joules", r"`search\.cost` must be one of latency, parameters, macs, got 'joules'"),
        ("search.complexity_weight=-0.1", r"`search\.complexity_weight` must be finite and at least 0"),
        ("search.threshold=1.0", r"`search\.threshold` must be in \[0, 1\), got 1\.0"),
        ("search.target_ms=0", r"`search\.target_ms` must be positive"),
        ("retrain.start=warm", r"`retrain\.start` must be scratch or inherited, got 'warm'"),
        ("retrain.num_workers=3", r"`retrain\.batch_size` must be a multiple of retrain\.num_workers"),
        ("retrain.final_learning_rate=0.5", r"`retrain\.final_learning_rate` must be between"),
        ("noise.sigma_255=[50, 25]", r"`noise\.sigma_255` must be two ascending numbers in \[0, 255\]"),
        ("noise.model=salt", r"`noise\.model` must be one of awgn, niid, mixed, poisson, pairs, got 'salt'"),
        ("data.architecture_share=1.0", r"`data\.architecture_share` must be between 0 and 1"),
        ("latency.min_repeats=9", r"`latency\.min_repeats` must be between 1 and max_repeats, got 9"),
        ("evaluate.tile_size=16", r"`evaluate\.tile_size` must be larger than the overlap"),
        ("prior_train.sigma_255=[3]", r"`prior_train\.sigma_255` must be two ascending numbers"),
        ("noise.validation_sigma_255=0", r"`noise\.validation_sigma_255` must be in \(0, 255\], got 0"),
        ("prior_train.max_bad_steps=-1", r"`prior_train\.max_bad_steps` must be at least 0, got -1"),
        ("prior_train.encoder_blocks=[1, 1000000000]", r"`prior_train\.encoder_blocks` must be at most 8 numbers in"),
        ("seed=-1", r"`seed` must be in \[0, 4294967296\), got -1"),
        ("seed=4294967296", r"`seed` must be in \[0, 4294967296\), got 4294967296"),
        ("device=tpu", r"`device` must be one of cpu, cuda, got 'tpu'"),
        ("search.num_epochs", r"an override must look like .*, got 'search\.num_epochs'"),
        ("=3", r"an override must look like"),
        ("seed.num=3", r"`seed\.num` goes through `seed`, which holds a value"),
        ("seed=[1", r"the value of override 'seed=\[1' is not YAML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "tiny.yaml"
    load_config("tiny", ["seed=0"]).save(path)
    with pytest.raises(ValueError, match=message):
        load_config(str(path), [override])


@pytest.mark.parametrize(
    "name",
    [
        "prior_train.num_channels", "prior_train.num_blocks", "prior_train.middle_blocks", "prior_train.batch_size",
        "prior_train.patch_size", "latency.image_size", "latency.num_threads", "evaluate.image_size",
        "search.patch_size", "search.num_patches", "search.batch_size", "search.threads_per_part",
        "retrain.patch_size", "retrain.batch_size", "retrain.distilled_patches", "retrain.num_workers",
        "retrain.threads_per_worker", "collect.shared_batch_size",
    ],
)  # fmt: skip
def test_sizes_far_above_any_use_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be at most \d+, got 1000000000"):
        load_config("tiny", [f"{name}=1000000000"])


def test_a_budget_in_ms_needs_the_latency_cost() -> None:
    with pytest.raises(ValueError, match=r"`search\.cost` must be latency when search\.target_ms is set"):
        load_config("tiny", ["search.cost=macs", "search.target_ms=3.0"])


def test_a_budget_needs_what_holds_it() -> None:
    message = (
        r"`search\.complexity_weight` must be above 0 when search\.target_ms is set and search\.derive_samples is 0"
    )
    with pytest.raises(ValueError, match=message + r", got 0\.0"):
        load_config("collect", ["search.target_ms=3.0"])
    load_config("collect", ["search.target_ms=3.0", "search.derive_samples=16"])
    load_config("collect", ["search.target_ms=3.0", "search.complexity_weight=0.001"])


def test_a_missing_file_lists_the_presets() -> None:
    with pytest.raises(FileNotFoundError, match="'quik' is neither a file nor a preset; presets are .*quick"):
        load_config("quik")


@pytest.mark.parametrize(("text", "message"), [("- 1\n- 2\n", "must hold keys and values, got list"), ("a: [", "YAML")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(str(path))


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_config(str(path)) == Config()


@pytest.mark.parametrize("name", list_presets())
def test_a_saved_configuration_reads_back_equal(tmp_path: Path, name: str) -> None:
    config = load_config(name, ["search.complexity_weight=1e-5", "data.exclude=[a, b]"])
    config.save(tmp_path / "config.yaml")
    again = load_config(str(tmp_path / "config.yaml"))
    assert again == config
    assert again.config_hash == config.config_hash


def test_the_hash_changes_with_what_changes_results_only() -> None:
    reference = load_config("tiny").config_hash
    assert len(reference) == 12
    unimportant = ["output=elsewhere", "tracking.experiment=other", "ray.cpus_per_part=1.0", "name=another"]
    assert load_config("tiny", unimportant).config_hash == reference
    for setting in (
        "seed=1",
        "search.num_epochs=4",
        "noise.model=niid",
        "latency.num_threads=2",
        "retrain.start=scratch",
    ):
        assert load_config("tiny", [setting]).config_hash != reference, setting


@pytest.mark.parametrize("setting", ["data.cache=here", "data.promote_grey=true"])
def test_how_images_are_let_in_and_kept_changes_no_result(setting: str) -> None:
    assert load_config("tiny").config_hash == load_config("tiny", [setting]).config_hash


def test_runs_are_recorded_where_settings_or_else_the_environment_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert Config().tracking_uri == "http://127.0.0.1:5000"
    assert load_config("tiny", ["tracking.uri=sqlite:///mine.db"]).tracking_uri == "sqlite:///mine.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Config(output="/runs/one").tracking_uri == "sqlite:////runs/mlflow.db"


NINEFOLD = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise("abcdefghij")]


@pytest.mark.parametrize("text", ["\n".join(["a: &a [1, 1, 1]", *NINEFOLD]), "&a [*a]"], ids=["wide", "endless"])
def test_what_anchors_repeat_is_bounded(tmp_path: Path, text: str) -> None:
    """A few lines that would stand for 10^9 values, or for endlessly many."""
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"bomb\.yaml must hold at most 10000 values, 20 levels deep"):
        load_config(str(tmp_path / "bomb.yaml"))


def test_a_configuration_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text(f"!!python/object/apply:os.mkdir [{tmp_path / 'made'}]")
    with pytest.raises(ValueError, match=r"evil\.yaml is not YAML"):
        load_config(str(tmp_path / "evil.yaml"))
    assert not (tmp_path / "made").exists()


def test_an_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("search: {num_epochs: 0}")
    with pytest.raises(ValueError, match=r"mine\.yaml: `search.num_epochs` must be at least 1, got 0"):
        load_config(str(tmp_path / "mine.yaml"))
