import torch

from ops import OpSpec, create_op


def test_skip_cuts_or_pads_and_has_no_parameters() -> None:
    op = create_op(OpSpec(name="skip", in_channels=8, out_channels=6, base_channels=8, height=5, width=3))
    x = torch.randn(2, 8, 5, 3)
    assert not list(op.parameters())
    assert torch.equal(op(x), x[:, :6])
    assert torch.equal(op(x, 8), x)
    assert torch.equal(op(x[:, :4]), torch.cat((x[:, :4], torch.zeros(2, 2, 5, 3)), dim=1))
