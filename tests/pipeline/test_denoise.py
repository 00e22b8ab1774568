import pytest
import torch
from torch import Tensor, nn

from pipeline.denoise import denoise_image


class Recorder(nn.Module):
    """The identity, which remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []
        self.modes: list[bool] = []

    def forward(self, noisy: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert noisy.is_contiguous(memory_format=torch.channels_last)
        self.sizes.append((noisy.shape[2], noisy.shape[3]))
        self.modes.append(self.training)
        return noisy


@pytest.mark.parametrize("size", [(1, 1), (37, 31), (64, 64), (65, 17), (100, 71), (1, 90)])
@pytest.mark.parametrize("tiles", [(None, 32), (32, 8), (32, 31), (32, 20), (16, 0), (1, 0), (200, 32)])
def test_tiles_of_the_identity_give_the_image_back(size: tuple[int, int], tiles: tuple[int | None, int]) -> None:
    noisy = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    if tiles == (32, 31) or tiles == (1, 0):
        noisy = noisy[..., :40, :40]  # one tile per pixel
    denoised = denoise_image(nn.Identity(), noisy, tile_size=tiles[0], tile_overlap=tiles[1], device="cpu")
    torch.testing.assert_close(denoised, noisy, atol=1e-6, rtol=0)


def test_no_tile_is_larger_than_asked_for_and_without_tiles_there_is_one() -> None:
    noisy = torch.rand(1, 3, 100, 71)
    model = Recorder()
    denoise_image(model, noisy, tile_size=32, tile_overlap=8, device="cpu")
    assert set(model.sizes) == {(32, 32)}
    assert len(model.sizes) == 4 * 3
    model = Recorder()
    denoise_image(model, noisy, device="cpu")
    assert model.sizes == [(100, 71)]


def test_tiles_of_a_local_model_agree_with_the_whole_image_where_the_overlap_covers_its_reach() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    noisy = torch.rand(1, 3, 90, 70)
    whole = denoise_image(model, noisy, device="cpu")
    tiled = denoise_image(model, noisy, tile_size=48, tile_overlap=32, device="cpu")
    difference = (whole - tiled).abs()
    assert difference.max() < 0.01  # two pixels at a tile's edge see its padding, at weights close to zero
    assert difference.mean() < 1e-4


def test_seams_fade_smoothly() -> None:
    class Number(nn.Module):
        """Answer 0 for the first tile, 1 for the second."""

        calls = 0

        def forward(self, noisy: Tensor) -> Tensor:
            self.calls += 1
            return torch.full_like(noisy, self.calls - 1.0)

    denoised = denoise_image(Number(), torch.zeros(1, 3, 8, 48), tile_size=32, tile_overlap=16, device="cpu")
    row = denoised[0, 0, 0]
    assert (row[:16] == 0).all()
    assert (row[32:] == 1).all()
    assert ((row.diff() >= 0) & (row.diff() < 0.11)).all()


def test_the_model_runs_in_evaluation_mode_and_keeps_its_own() -> None:
    model = Recorder()
    parent = nn.Sequential(model, nn.Dropout(0.5), nn.BatchNorm2d(3).eval())
    denoise_image(parent, torch.rand(1, 3, 8, 8), device="cpu")
    assert model.modes == [False]
    assert [module.training for module in parent.modules()] == [True, True, True, False]


def test_the_result_is_an_ordinary_tensor() -> None:
    denoised = denoise_image(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8), device="cpu")
    assert not denoised.is_inference()
    assert not denoised.requires_grad


@pytest.mark.gpu
def test_a_model_on_a_gpu_takes_and_returns_images_on_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    noisy = torch.rand(1, 3, 50, 40)
    denoised = denoise_image(nn.Identity(), noisy, tile_size=32, tile_overlap=8, device="cuda")
    torch.testing.assert_close(denoised, noisy, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`noisy` must have shape \(1, 3, H, W\), got"):
        denoise_image(nn.Identity(), torch.zeros(shape), device="cpu")


@pytest.mark.parametrize("overlap", [32, 40, -1])
def test_an_overlap_that_does_not_fit_the_tile_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"`tile_overlap` must lie in .* got {overlap} for tiles of 32"):
        denoise_image(nn.Identity(), torch.zeros(1, 3, 64, 64), tile_size=32, tile_overlap=overlap, device="cpu")


def test_a_tile_needs_a_pixel_and_a_model_its_shape() -> None:
    with pytest.raises(ValueError, match="`tile_size` must be at least 1, got 0"):
        denoise_image(nn.Identity(), torch.zeros(1, 3, 8, 8), tile_size=0, tile_overlap=0, device="cpu")
    with pytest.raises(ValueError, match=r"`model` must keep the shape \(1, 3, 8, 8\), got \(1, 5, 8, 8\)"):
        denoise_image(nn.Conv2d(3, 5, 1), torch.zeros(1, 3, 8, 8), device="cpu")
