from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.peers import DartsSettings, darts
from pipeline.peers.darts import Supernet, search_darts

CPU = torch.device("cpu")


class TwoScales(Supernet[str]):
    """A choice between leaving the noise and removing a part of it: the second is the better one."""

    def __init__(self) -> None:
        super().__init__()
        self.arch = nn.ParameterDict({"alpha": torch.zeros(1, 2)})
        self.blur = nn.Conv2d(3, 3, 5, padding=2, padding_mode="reflect", groups=3)
        nn.init.constant_(self.blur.weight, 0.04)
        nn.init.zeros_(self.blur.bias)

    def probabilities(self) -> dict[str, Tensor]:
        return {"alpha": self.arch["alpha"].softmax(dim=-1)}

    def loss(self, noisy: Tensor, clean: Tensor) -> Tensor:
        p = self.probabilities()["alpha"][0]
        return (p[0] * noisy + p[1] * self.blur(noisy) - clean).square().mean()

    def derive(self) -> str:
        return ("noisy", "blurred")[int(self.arch["alpha"].argmax())]


def search(supernet: TwoScales, sources: Any, settings: DartsSettings | None = None, **limits: Any) -> Any:
    settings = settings or DartsSettings(batch_size=4, warmup_share=0.2, arch_travel=2.0, learning_rate=1e-3,
                                         final_learning_rate=1e-4)  # fmt: skip
    limits = limits or {"max_steps": 20}
    return search_darts(lambda: supernet, sources, settings, seed=0, device=CPU, **limits)


def test_the_better_candidate_is_found(sources: Any) -> None:
    result = search(TwoScales(), sources)
    assert result.genotype == "blurred"
    assert result.num_steps == 20
    assert 0 < result.entropy < 1


@pytest.mark.parametrize("max_steps", [10, 40])
def test_a_logit_moves_no_farther_than_the_travel_however_long_the_search(sources: Any, max_steps: int) -> None:
    supernet = TwoScales()
    settings = DartsSettings(batch_size=4, arch_travel=0.5, arch_weight_decay=0.0, learning_rate=1e-6,
                             final_learning_rate=0.0)  # fmt: skip
    search(supernet, sources, settings, max_steps=max_steps)
    # Gradients that keep their sign make every step of Adam nearly as long as its rate.
    assert 0.4 < supernet.arch["alpha"].abs().max().item() <= 0.5


def test_warm_up_trains_weights_only(sources: Any) -> None:
    supernet = TwoScales()
    rows: list[dict[str, float]] = []
    settings = DartsSettings(batch_size=2, warmup_share=0.99)
    search(supernet, sources, settings, max_steps=20, log=lambda _, row: rows.append(row))
    assert torch.equal(supernet.arch["alpha"], torch.zeros(1, 2))
    assert not torch.equal(supernet.blur.weight, torch.full_like(supernet.blur.weight, 0.04))
    assert set(rows[0]) == {"weight_loss", "entropy"}


def test_the_halves_of_the_data_train_what_they_are_for(sources: Any) -> None:
    drawn: list[str] = []

    class Recording:
        def __init__(self, split: str) -> None:
            self.split = split

        def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            drawn.append(self.split)
            return sources[self.split].sample(batch_size, generator)

    recording = {split: Recording(split) for split in sources}
    search(TwoScales(), recording, DartsSettings(batch_size=2, warmup_share=0.5), max_steps=4)
    assert drawn == ["weights", "weights", "architecture", "weights", "architecture", "weights"]


def test_the_clock_ends_a_search(sources: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances a second per reading, and is read once per step and twice around the search."""
    seconds = iter(range(1000))
    monkeypatch.setattr(darts.time, "perf_counter", lambda: float(next(seconds)))
    assert search(TwoScales(), sources, max_seconds=12.0).num_steps == 12


def test_equal_seeds_give_equal_weights(sources: Any) -> None:
    supernets = [TwoScales(), TwoScales()]
    for supernet in supernets:
        search(supernet, sources)
    assert torch.equal(supernets[0].blur.weight, supernets[1].blur.weight)
    assert torch.equal(supernets[0].arch["alpha"], supernets[1].arch["alpha"])


def test_a_loss_that_is_not_finite_ends_the_search(sources: Any) -> None:
    supernet = TwoScales()
    nn.init.constant_(supernet.blur.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="the loss became nan; lower `learning_rate`"):
        search(supernet, sources)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_steps": None}, "must be limited by `max_steps` or `max_seconds`, got neither"),
        ({"max_steps": 0}, "`max_steps` must be positive, got 0"),
        ({"max_seconds": -1.0}, "`max_seconds` must be positive, got -1.0"),
    ],
)
def test_impossible_limits_are_refused(sources: Any, limits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(TwoScales(), sources, **limits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"warmup_share": 1.0}, r"`warmup_share` must be in \[0, 1\), got 1.0"),
        ({"arch_travel": 0.0}, "`arch_travel` must be positive, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DartsSettings(**settings)
