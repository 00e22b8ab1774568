"""What the three part searches are given; the searches themselves run in `test_part_search.py` and `test_run.py`."""

from pathlib import Path

import numpy as np
import pytest

from ops import OpSpec
from pipeline.config import Config, load_config
from pipeline.data.images import write_image
from pipeline.priors import NAFNet, save_prior
from pipeline.run import open_run
from pipeline.search_inputs import cost_models, features_megabytes, part_budgets, prepare_inputs, search_key, space_of
from search_space import SearchSpace


def tiny(*overrides: str) -> Config:
    return load_config("tiny", ["search.cost=latency", *overrides])


def price(spec: OpSpec) -> float:
    return 1.0


def test_the_space_has_the_priors_channels(tiny_space: SearchSpace) -> None:
    assert space_of(tiny(), 16) == tiny_space


def test_a_budget_is_divided_after_stems_and_tails(tiny_space: SearchSpace) -> None:
    config = tiny("search.target_ms=19.0")
    costs = cost_models(config, tiny_space, price)
    budgets = part_budgets(config, costs)
    frames = [cost.minimum_frame_cost for cost in costs]
    assert frames == [3, 3, 4]  # stem, tail and long skip; the last part has an image output too
    assert budgets == [6, 6, 7]
    assert part_budgets(tiny(), costs) == [None] * 3


def test_a_budget_below_stems_and_tails_is_refused(tiny_space: SearchSpace) -> None:
    config = tiny("search.target_ms=10.0")
    with pytest.raises(ValueError, match=r"`search.target_ms` 10.0 is below the 10.00 ms that stems and tails cost"):
        part_budgets(config, cost_models(config, tiny_space, price))


def test_latency_costs_need_a_table(tiny_space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="`search.cost` is latency, but there is no latency table"):
        cost_models(tiny(), tiny_space, None)
    for unit in ("macs", "parameters"):
        costs = cost_models(tiny(f"search.cost={unit}"), tiny_space, None)
        assert all(cost.minimum_frame_cost > 100 for cost in costs)


def test_inputs_hold_features_or_images(quick_prior: object, images: list[np.ndarray]) -> None:
    cached = prepare_inputs(tiny(), quick_prior, dict(zip("ab", images, strict=True)))
    assert cached.patches is not None and cached.images == ([], [])
    assert cached.patches.num_bytes / 1e6 == pytest.approx(features_megabytes(tiny(), 16))
    live = prepare_inputs(tiny("search.prior_features=live"), quick_prior, dict(zip("ab", images, strict=True)))
    assert live.patches is None
    assert sum(image.size for half in live.images for image in half) == sum(image.size for image in images)


def test_the_head_of_a_cluster_needs_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_gpus = [f"output={tmp_path}/run", "device=cuda", "ray.gpus_per_part=1"]
    run = open_run(load_config("tiny", [*on_gpus, "ray.address='10.0.0.1:6379'"]))
    assert {parameter.device.type for parameter in run.prior.parameters()} == {"cpu"}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="`device` is cuda, but torch sees no CUDA device"):
        open_run(load_config("tiny", on_gpus))


@pytest.mark.parametrize("name", ["search", "retrain"])
def test_patches_that_the_prior_cannot_take_are_refused_before_any_work(tmp_path: Path, name: str) -> None:
    deep = NAFNet(num_channels=16, encoder_blocks=(1,) * 4, middle_blocks=1, decoder_blocks=(1,) * 4)
    save_prior(deep, tmp_path / "deep.safetensors")
    settings = [f"prior.weights={tmp_path}/deep.safetensors", f"output={tmp_path}/run", f"{name}.patch_size=20"]
    with pytest.raises(ValueError, match=rf"`{name}.patch_size` must be a multiple of 16 for .*deep.* got 20"):
        open_run(load_config("tiny", [*settings, "retrain.distill_share=0.5"]))
    if name == "retrain":
        open_run(load_config("tiny", [*settings, "retrain.distill_share=0"]))  # the prior sees no patch of these


def test_images_too_small_to_be_divided_are_named_before_any_work(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "photos" / f"{name}.png", np.zeros((60, 60, 3), np.uint8))
    config = load_config("quick", [f"data.training={tmp_path}/photos", f"output={tmp_path}/run"])
    with pytest.raises(ValueError, match="training image a of 60x60 pixels is too small to be cut") as caught:
        open_run(config, searches=True)
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "run").exists()
    open_run(config)  # a baseline may train on them


def test_features_that_will_not_fit_are_refused_before_they_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = open_run(load_config("tiny", [f"output={tmp_path}/run", "search.num_patches=100000"]))
    with pytest.raises(ValueError, match=r"features need about \d+ MB, `ray.object_store_mb` is \d+; raise it, or set"):
        run.search_inputs()


def test_the_search_key_tells_what_a_search_depends_on() -> None:
    reference = search_key(tiny())
    for setting in ("output=x", "retrain.num_epochs=9", "evaluate.image_size=64", "tracking.experiment=x"):
        assert search_key(tiny(setting)) == reference, setting
    for setting in ("seed=1", "noise.model=niid", "search.num_epochs=9", "latency.image_size=64", "prior.weights=x"):
        assert search_key(tiny(setting)) != reference, setting
