import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ops import OpSpec, create_op
from ops.naf import NAFBlock
from search_space import DEFAULT_OPS, SearchSpace, build_network, sample_genotype


def make_block(channels: int) -> NAFBlock:
    block = NAFBlock(channels)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return block


def make_spec(in_channels: int, out_channels: int) -> OpSpec:
    return OpSpec(name="naf", in_channels=in_channels, out_channels=out_channels, base_channels=64, height=9, width=7)


def published_form(block: NAFBlock, x: Tensor) -> Tensor:
    """The block as the paper draws it: halves instead of pairs, normalisation written out."""
    order = torch.cat((torch.arange(0, 2 * x.shape[1], 2), torch.arange(1, 2 * x.shape[1], 2)))

    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, correction=0, keepdim=True)
        scale, shift = (p.view(1, -1, 1, 1) for p in (layer.weight, layer.bias))
        return (x - mean) / (variance + 1e-6).sqrt() * scale + shift

    def gate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return first * second

    features = F.conv2d(norm(x, block.spatial_norm), block.spatial_in.weight[order], block.spatial_in.bias[order])
    depthwise = block.depthwise
    features = F.conv2d(features, depthwise.weight[order], depthwise.bias[order], padding=1, groups=len(order))
    features = gate(features)
    features = features * block.attention(F.adaptive_avg_pool2d(features, 1))
    x = x + block.spatial_out(features) * block.spatial_scale.view(1, -1, 1, 1)
    features = gate(F.conv2d(norm(x, block.mlp_norm), block.mlp_in.weight[order], block.mlp_in.bias[order]))
    return x + block.mlp_out(features) * block.mlp_scale.view(1, -1, 1, 1)


def test_block_is_that_of_nafnet_but_for_a_permutation() -> None:
    torch.manual_seed(0)
    block, x = make_block(12), torch.randn(2, 12, 9, 7)
    torch.testing.assert_close(block(x), published_form(block, x), rtol=1e-5, atol=1e-5)


def test_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 12, 9, 7)
    assert torch.equal(NAFBlock(12)(x), x)


@pytest.mark.parametrize(("channels", "num_parameters"), [(64, 30_784), (32, 8_224)])
def test_parameters_and_multiply_adds(channels: int, num_parameters: int) -> None:
    op = create_op(make_spec(channels, channels))
    assert sum(parameter.numel() for parameter in op.parameters()) == num_parameters
    with FlopCounterMode(display=False) as counter:
        op(torch.randn(1, channels, 9, 7))
    assert counter.get_total_flops() == 2 * ((6 * channels**2 + 18 * channels) * 9 * 7 + channels**2)


def test_naf_is_offered_where_it_is_named() -> None:
    assert "naf" not in DEFAULT_OPS
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=2, candidate_ops=("naf",))
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(0))
    assert build_network(genotype)(torch.rand(1, 3, 9, 7)).shape == (1, 3, 9, 7)
