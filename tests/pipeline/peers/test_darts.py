from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.peers import DartsSettings
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


def search(supernet: TwoScales, sources: Any, settings: DartsSettings | None = None, *, num_batches: int = 36) -> str:
    settings = settings or DartsSettings(batch_size=4, warmup_share=0.2, arch_travel=2.0, learning_rate=1e-3,
                                         final_learning_rate=1e-4)  # fmt: skip
    return search_darts(lambda: supernet, sources, settings, seed=0, device=CPU, num_batches=num_batches)


def test_the_better_candidate_is_found(sources: Any) -> None:
    assert search(TwoScales(), sources) == "blurred"


@pytest.mark.parametrize("num_batches", [20, 80])
def test_a_logit_moves_no_farther_than_the_travel_however_long_the_search(sources: Any, num_batches: int) -> None:
    supernet = TwoScales()
    settings = DartsSettings(batch_size=4, arch_travel=0.5, arch_weight_decay=0.0, learning_rate=1e-6,
                             final_learning_rate=0.0)  # fmt: skip
    search(supernet, sources, settings, num_batches=num_batches)
    # Gradients that keep their sign make every step of Adam nearly as long as its rate.
    assert 0.4 < supernet.arch["alpha"].abs().max().item() <= 0.5


def test_warm_up_trains_weights_only(sources: Any) -> None:
    supernet = TwoScales()
    search(supernet, sources, DartsSettings(batch_size=2, warmup_share=0.99), num_batches=20)
    assert torch.equal(supernet.arch["alpha"], torch.zeros(1, 2))
    assert not torch.equal(supernet.blur.weight, torch.full_like(supernet.blur.weight, 0.04))


@pytest.mark.parametrize(
    ("warmup_share", "num_batches", "expected"),
    [(0.5, 6, "wwawaw"), (0.5, 7, "wwwawaw"), (0.0, 8, "awawawaw"), (0.0, 7, "wawawaw"), (0.5, 1, "w")],
)
def test_a_search_draws_so_many_batches_of_the_halves(
    sources: Any, warmup_share: float, num_batches: int, expected: str
) -> None:
    drawn: list[str] = []

    class Recording:
        def __init__(self, split: str) -> None:
            self.split = split

        def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            drawn.append(self.split[0])
            return sources[self.split].sample(batch_size, generator)

    recording = {split: Recording(split) for split in sources}
    search(TwoScales(), recording, DartsSettings(batch_size=2, warmup_share=warmup_share), num_batches=num_batches)
    assert "".join(drawn) == expected


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


def test_a_search_without_batches_is_refused(sources: Any) -> None:
    with pytest.raises(ValueError, match="`num_batches` must be at least 1, got 0"):
        search(TwoScales(), sources, num_batches=0)


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
