import numpy as np
import pytest
import torch

from pipeline.data.images import to_tensor
from pipeline.evaluation.models import open_model

bm3d = pytest.importorskip("bm3d", reason="BM3D is an optional extra: free for non-commercial use only")
SIGMA = 25 / 255


def test_bm3d_is_the_packages_own_and_removes_most_of_the_noise() -> None:
    rows, columns = np.mgrid[:48, :40] / 9
    clean = np.stack([0.5 + 0.3 * np.sin(rows + k) * np.cos(columns) for k in range(3)], axis=2)
    noisy = (clean + np.random.RandomState(0).normal(0, SIGMA, clean.shape)).astype(np.float32)
    model = open_model("bm3d", device="cpu")
    denoised = model.for_noise(SIGMA)(to_tensor(noisy))[0].permute(1, 2, 0).numpy()
    assert np.abs(denoised - bm3d.bm3d_rgb(noisy.astype(np.float64), SIGMA)).max() < 1e-6
    assert np.mean((denoised - clean) ** 2) < 0.1 * SIGMA**2
    blind = model.for_noise(None)(to_tensor(noisy))[0].permute(1, 2, 0).numpy()  # estimates sigma
    assert np.mean((blind - clean) ** 2) < 0.15 * SIGMA**2
    assert model.costs.num_parameters == 0 and model.costs.macs is None


def test_bm3d_takes_grey_images_and_such_without_noise() -> None:
    model = open_model("bm3d", device="cpu")
    grey = 0.5 + torch.from_numpy(np.random.RandomState(0).normal(0, SIGMA, (1, 1, 24, 16))).float().repeat(1, 3, 1, 1)
    torch.testing.assert_close(model.for_noise(0.0)(grey), grey, rtol=0, atol=0)
    denoised = model.for_noise(SIGMA)(grey)
    assert (denoised - 0.5).square().mean() < 0.2 * SIGMA**2
    assert torch.equal(denoised[:, 0], denoised[:, 2])
