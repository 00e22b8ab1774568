import os
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from pipeline.data.datasets import Dataset, Sample, open_dataset
from pipeline.evaluation.noise import TestNoise, parse_noise
from pipeline.metrics import psnr_db


@pytest.fixture
def grey() -> Dataset:
    """Two images of one brightness each."""
    images = {"bright": np.full((200, 160, 3), 204, np.uint8), "dark": np.full((160, 200, 3), 51, np.uint8)}
    return Dataset(name="grey", names=tuple(images), is_paired=False, load=lambda n: Sample(name=n, clean=images[n]))


@pytest.mark.parametrize("name", ["awgn:25", "niid:2", "niid:3:clean", "poisson:4:2"])
def test_noise_is_the_same_every_time_and_changes_no_clean_image(grey: Dataset, name: str) -> None:
    first, second = (list(parse_noise(name).samples(grey)) for _ in range(2))
    assert [sample.name for sample in first] == ["bright", "dark"]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.noisy, other.noisy)
        np.testing.assert_array_equal(one.clean, grey.load(one.name).clean)
        assert one.noisy.dtype == np.float32
        assert one.noisy.shape == one.clean.shape


def test_awgn_has_its_sigma(grey: Dataset) -> None:
    noise = parse_noise("awgn:25")
    assert noise.sigma == pytest.approx(25 / 255)
    for sample in noise.samples(grey):
        assert 255 * (sample.noisy - sample.clean / 255).std() == pytest.approx(25, rel=0.01)


def test_poisson_variance_rises_with_brightness(grey: Dataset) -> None:
    """Grey levels 204 and 51, gain 4 and read noise 2: variances 820 and 208."""
    variances = {s.name: np.var(255 * s.noisy - s.clean) for s in parse_noise("poisson:4:2").samples(grey)}
    assert variances["bright"] == pytest.approx(4 * 204 + 4, rel=0.02)
    assert variances["dark"] == pytest.approx(4 * 51 + 4, rel=0.02)


@pytest.mark.parametrize("case", [1, 2, 3])
def test_niid_levels_follow_the_map(grey: Dataset, case: int) -> None:
    """The mean of sigma^2 over the map of each case, whatever the size of the image."""
    rms = {1: 41.510, 2: 47.847, 3: 48.028}[case]
    for sample in parse_noise(f"niid:{case}").samples(grey):
        assert np.sqrt(np.mean((255 * sample.noisy - sample.clean) ** 2)) == pytest.approx(rms, rel=0.01)


def test_pairs_come_from_the_set() -> None:
    clean, noisy = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 51, np.uint8)
    pairs = Dataset(
        name="p", names=("a",), is_paired=True, load=lambda name: Sample(name=name, clean=clean, noisy=noisy)
    )
    (sample,) = parse_noise("pairs").samples(pairs)
    np.testing.assert_allclose(sample.noisy, 0.2)


@pytest.mark.parametrize("name", ["awgn:25", "niid:2", "poisson:4:2", "pairs"])
def test_deep_images_get_the_noise_of_their_brightness(name: str) -> None:
    shallow = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    samples = []
    for clean, noisy in (shallow, shallow * np.uint16(257)):
        load = partial(Sample, clean=clean, noisy=noisy)
        pairs = Dataset(name="p", names=("a",), is_paired=True, load=lambda name, load=load: load(name=name))
        samples += parse_noise(name).samples(pairs)
    np.testing.assert_allclose(samples[0].noisy, samples[1].noisy, atol=1e-6)


def test_pairs_of_a_clean_set_are_refused(grey: Dataset) -> None:
    with pytest.raises(ValueError, match="noise `pairs` needs noisy images beside the clean ones; grey has none"):
        parse_noise("pairs").check(grey)


@pytest.mark.parametrize(
    "name", ["", "awgn", "awgn:", "awgn:x", "awgn:300", "awgn:-1", "awgn:nan", "niid", "niid:4", "niid:1:dirty",
             "niid:1:clean:1", "poisson:1", "poisson:0:1", "pairs:1", "salt:1"]
)  # fmt: skip
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="noise must be one of awgn:SIGMA"):
        parse_noise(name)


_DATA = os.environ.get("DENOISE_NAS_DATA")
_ANCHORS = {
    ("Set5", "niid:1"): (15.765, 16.773), ("Set5", "niid:2"): (14.539, 15.815), ("Set5", "niid:3"): (14.498, 15.702),
    ("CBSD68", "niid:1"): (15.767, 16.483), ("CBSD68", "niid:2"): (14.536, 15.507),
    ("CBSD68", "niid:3"): (14.501, 15.376),
}  # fmt: skip


def _noisy_psnr(noise: TestNoise, dataset: Dataset) -> tuple[float, float]:
    """Return the mean PSNR of the noisy images themselves, as they are and clipped and rounded."""
    exact, rounded = [], []
    for sample in noise.samples(dataset):
        levels = 255 * sample.noisy.astype(np.float64)
        exact.append(psnr_db(levels, sample.clean, data_range=255))
        rounded.append(psnr_db(levels.clip(0, 255).round(), sample.clean, data_range=255))
    return fmean(exact), fmean(rounded)


@pytest.mark.skipif(_DATA is None, reason="DENOISE_NAS_DATA does not name a folder with Set5, CBSD68 and PolyU100")
class TestAnchors:
    """PSNR of the noisy inputs themselves, on the real image sets."""

    @pytest.mark.parametrize(("dataset", "noise"), list(_ANCHORS))
    def test_niid(self, dataset: str, noise: str) -> None:
        found = _noisy_psnr(parse_noise(noise), open_dataset(Path(str(_DATA)) / dataset))
        assert found == pytest.approx(_ANCHORS[dataset, noise], abs=0.005)

    @pytest.mark.parametrize("case", [1, 2, 3])
    def test_niid_without_the_quirks_is_as_strong(self, case: int) -> None:
        exact, _ = _noisy_psnr(parse_noise(f"niid:{case}:clean"), open_dataset(Path(str(_DATA)) / "Set5"))
        assert exact == pytest.approx(_ANCHORS["Set5", f"niid:{case}"][0], abs=0.02)

    @pytest.mark.parametrize("sigma", [15, 25, 50])
    @pytest.mark.parametrize("dataset", ["Set5", "CBSD68"])
    def test_awgn(self, dataset: str, sigma: int) -> None:
        """White noise of sigma grey levels: 20 log10(255 / sigma) dB, 24.61, 20.17 and 14.15."""
        exact, _ = _noisy_psnr(parse_noise(f"awgn:{sigma}"), open_dataset(Path(str(_DATA)) / dataset))
        assert exact == pytest.approx(20 * np.log10(255 / sigma), abs=0.02)

    def test_polyu(self) -> None:
        folder = Path(str(_DATA)) / "PolyU100"
        _, rounded = _noisy_psnr(parse_noise("pairs"), open_dataset(f"{folder}:{{}}_real:{{}}_mean"))
        assert rounded == pytest.approx(35.97, abs=0.005)
