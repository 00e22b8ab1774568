"""One search of the whole network without a prior: the three supernets in a row, trained on clean images.

Called by the experiment `prior`. What Table VII of arXiv 2502.13359 compares with: Algorithm 1 with the distance to the
clean image (the L1 of Eq. 14) in place of L_dp, so that all parts have to be kept in memory and trained at once.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.data.part_data import Split
from pipeline.data.patches import Patches
from pipeline.losses import training_loss
from pipeline.part_search import new_supernet, sample_choices
from pipeline.priors import NUM_PARTS
from pipeline.settings import SearchConfig
from search_space import Choices, Genotype, PartSupernet, SearchSpace, derive


class WholeSupernet(nn.Module):
    """Three part supernets in a row: denoised = noisy + residual.

    Every part begins with the weights that a search of this part alone begins with.
    """

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(new_supernet(part_index, space, seed)[0] for part_index in range(NUM_PARTS))
        self.space = space

    def supernets(self) -> list[PartSupernet]:
        """Return the three parts."""
        return [part for part in self.parts if isinstance(part, PartSupernet)]

    def forward(self, noisy: Tensor, choices: Sequence[Choices]) -> Tensor:
        """Denoise (B, 3, H, W) with the choices of every part."""
        x = noisy
        for part, chosen in zip(self.parts, choices, strict=True):
            x = part(x, chosen)
        return noisy + x


class WholeSearch:
    """Algorithm 1 for all parts at once.

    Args:
        supernet: on its device.
        patches: of D_w and D_archi, noisy and clean.
        config: numbers of the search; there is no complexity regulariser.
        seed: of samples and batches.
    """

    def __init__(
        self, supernet: WholeSupernet, patches: Mapping[Split, Patches], config: SearchConfig, *, seed: int
    ) -> None:
        self.supernet = supernet
        self.patches = patches
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.arch_parameters = [p for part in supernet.supernets() for p in part.arch.parameters()]
        weights = [p for part in supernet.supernets() for p in part.weight_parameters()]
        self.arch_optimizer = torch.optim.Adam(self.arch_parameters, lr=config.arch_learning_rate)
        self.weight_optimizer = torch.optim.Adam(weights, lr=config.weight_learning_rate)

    def run(self) -> Genotype:
        """Alternate architecture and weight steps, as many as a part search does, then derive."""
        config = self.config
        for epoch in range(config.num_epochs):
            for _ in range(config.steps_per_epoch):
                if epoch >= config.num_warmup_epochs:
                    loss = self.loss("architecture", with_gradient=True)
                    gradients = torch.autograd.grad(loss, self.arch_parameters)
                    for parameter, gradient in zip(self.arch_parameters, gradients, strict=True):
                        parameter.grad = gradient
                    self.arch_optimizer.step()
                loss = self.loss("weights", with_gradient=False)
                if not loss.isfinite():
                    raise FloatingPointError(f"the loss became {loss.item()}; lower `search.weight_learning_rate`")
                self.weight_optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.weight_optimizer.step()
        parts = [derive(part.arch, threshold=config.threshold) for part in self.supernet.supernets()]
        return Genotype.of(self.supernet.space, parts)

    def loss(self, split: Split, *, with_gradient: bool) -> Tensor:
        """Return the L1 distance to the clean patches of one half, for sampled choices."""
        config = self.config
        noisy, clean = (
            t.to(self.arch_parameters[0].device, memory_format=torch.channels_last)
            for t in self.patches[split].sample(config.batch_size, self.generator)
        )
        choices = [
            sample_choices(part, config, generator=self.generator, with_gradient=with_gradient)
            for part in self.supernet.supernets()
        ]
        return training_loss(self.supernet(noisy, choices), clean)
