"""Parameters and multiply-adds, per operator, part and whole network.

Two of the three costs a search can be regularised with (the third is a latency table), and what reports print.
Multiply-adds (MACs) count convolutions and matrix products; torch's FLOPs are twice as many.
"""

from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ops import OpSpec, create_op
from search_space.genotype import Genotype
from search_space.network import genotype_op_specs


@cache
def op_num_parameters(spec: OpSpec) -> int:
    """Return the number of parameters of one operator."""
    with torch.device("meta"):
        return num_parameters(create_op(spec))


@cache
def op_macs(spec: OpSpec) -> int:
    """Return the multiply-adds of one operator on one image of the size in `spec`."""
    with torch.device("meta"):
        op = create_op(spec).eval()
        x = torch.empty(1, spec.in_channels, spec.height, spec.width)
        inputs = [x]
        if spec.name == "up":
            inputs.append(torch.empty(1, spec.out_channels, 2 * spec.height, 2 * spec.width))
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            op(*inputs)
    return counter.get_total_flops() // 2


def num_parameters(module: nn.Module) -> int:
    """Return the number of learnable numbers, shared ones counted once."""
    return sum(p.numel() for p in module.parameters())


def network_macs(network: nn.Module, *, height: int, width: int) -> int:
    """Return the multiply-adds of a network on one (3, height, width) image; the network is not changed."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, height, width, device=device))
    return counter.get_total_flops() // 2


def genotype_num_parameters(genotype: Genotype) -> list[int]:
    """Return the operators' parameters of each part, without the few learnable pathway weights."""
    return [sum(map(op_num_parameters, specs)) for specs in genotype_op_specs(genotype, height=8, width=8)]


def genotype_macs(genotype: Genotype, *, height: int, width: int) -> list[int]:
    """Return the multiply-adds of each part on one image."""
    return [sum(map(op_macs, specs)) for specs in genotype_op_specs(genotype, height=height, width=width)]
