import itertools
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from search_space import Genotype, SearchSpace, genotype_num_parameters, sample_genotype
from search_space.draw import draw_genotype

SVG = "{http://www.w3.org/2000/svg}"


def make_genotype(seed: int = 0, *, op_weights: Mapping[str, float] | None = None, **numbers: int) -> Genotype:
    space = SearchSpace(**{"num_channels": 16, **numbers})
    return sample_genotype(space, generator=torch.Generator().manual_seed(seed), op_weights=op_weights)


def read(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts and the ids of an SVG file; raises where it is no well-formed XML."""
    root = ElementTree.parse(path).getroot()
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    return texts, [element.get("id", "") for element in root.iter(f"{SVG}g")]


@pytest.fixture
def svg(genotype: Genotype, tmp_path: Path) -> Path:
    path = tmp_path / "genotype.svg"
    draw_genotype(genotype, path)
    return path


def test_every_cell_is_drawn_or_outlined(genotype: Genotype, space: SearchSpace, svg: Path) -> None:
    _, ids = read(svg)
    for index, part in enumerate(genotype.parts):
        kept = {cell.position for cell in part.cells}
        for position in space.cells:
            name = f"r{position.resolution}_l{position.layer}"
            assert (f"part{index}_cell_{name}" in ids) == (position in kept)
            assert (f"part{index}_dropped_{name}" in ids) == (position not in kept)


def test_every_kept_pathway_is_an_arrow_and_nothing_else_is(genotype: Genotype, svg: Path) -> None:
    expected = set()
    for index, part in enumerate(genotype.parts):
        expected |= {f"part{index}_{name}" for name in ("entry", "to_tail", "long_skip", "to_sum", "exit")}
        for cell in part.cells:
            name = f"r{cell.position.resolution}_l{cell.position.layer}"
            directions = [direction for direction, _ in cell.resolution_pathways]
            expected |= {f"part{index}_{direction}_{name}" for direction in directions}
            expected |= {f"part{index}_detail_{name}"} if "up" in directions else set()
            expected |= {f"part{index}_dense{layer}_{name}" for layer, _ in cell.dense_pathways}
    boxes = ("_cell_", "_dropped_", "_stem", "_tail", "_image")
    _, ids = read(svg)
    drawn = [name for name in ids if name.startswith("part")]
    arrows = [name for name in drawn if "_to_" in name or not any(box in name for box in boxes)]
    assert set(arrows) == expected | {"part2_to_image"}
    assert len(set(drawn)) == len(drawn)


def test_text_stays_text(genotype: Genotype, svg: Path) -> None:
    texts, _ = read(svg)
    assert f"genotype {genotype.genotype_id}" in texts
    num_parameters = sum(genotype_num_parameters(genotype))
    assert any(text.startswith(f"{num_parameters / 1e3:.3g} k parameters") for text in texts)
    for part in genotype.parts:
        for cell in part.cells:
            channels = f"{2 * cell.in_width}→{2 * cell.out_width}"
            assert (cell.op, channels) in itertools.pairwise(texts)
    operators = [cell.op for part in genotype.parts for cell in part.cells]
    for op in set(operators):
        assert texts.count(op) == operators.count(op) + 1  # once more in the legend
    assert texts.count("noisy") == 1
    assert texts.count("residual") == 1


def test_the_legend_names_what_occurs(tmp_path: Path) -> None:
    path = tmp_path / "small.svg"
    draw_genotype(make_genotype(op_weights={"conv_d1": 1.0}, num_resolutions=1, num_layers=1), path)
    texts, _ = read(path)
    assert texts.count("conv_d1") == 4
    assert not {"skip", "swin", "dropped cell", "fine feature fused while up-sampling"} & set(texts)
    assert {"dense connection", "long skip"} <= set(texts)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_equal_genotypes_give_equal_files_without_a_date(genotype: Genotype, tmp_path: Path, suffix: str) -> None:
    files = []
    for name in ("first", "second"):
        path = tmp_path / name / f"genotype{suffix}"  # the folder is made
        draw_genotype(genotype, path, caption="one caption")
        files.append(path.read_bytes())
    assert files[0] == files[1]
    if suffix == ".svg":
        assert b"date" not in files[0].lower()
    else:
        with Image.open(path) as image:
            assert set(image.info) == {"dpi"}


@pytest.mark.slow  # a second Python loads torch and matplotlib
def test_the_file_does_not_depend_on_the_process(genotype: Genotype, svg: Path, tmp_path: Path) -> None:
    genotype.save(tmp_path / "genotype.json")
    program = (
        "import sys; from search_space import Genotype; from search_space.draw import draw_genotype; "
        "draw_genotype(Genotype.load('genotype.json'), 'again.svg'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    repository = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(repository)!r}); {program}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again.svg").read_bytes() == svg.read_bytes()


def test_a_caption_is_plain_text(genotype: Genotype, tmp_path: Path) -> None:
    caption = "28.5 G <multiply-adds> & $\\sigma$ = 25"
    draw_genotype(genotype, tmp_path / "caption.svg", caption=caption)
    assert caption in read(tmp_path / "caption.svg")[0]


@pytest.mark.parametrize(
    "numbers",
    [
        {"num_resolutions": 1, "num_layers": 1},
        {"num_resolutions": 2, "num_layers": 3, "num_channels": 1024},
        {"num_resolutions": 4, "num_layers": 10},
    ],
)
def test_grids_of_any_size_fit_their_picture(tmp_path: Path, numbers: dict[str, int]) -> None:
    path = tmp_path / "grid.png"
    draw_genotype(make_genotype(**numbers), path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert (pixels < 128).any()
    border = np.concatenate([pixels[:5].ravel(), pixels[-5:].ravel(), pixels[:, :5].ravel(), pixels[:, -5:].ravel()])
    assert (border == 255).all(), "something is cut off"


def test_pictures_are_as_large_as_a_screen_shows(genotype: Genotype, tmp_path: Path) -> None:
    draw_genotype(genotype, tmp_path / "genotype.png")
    with Image.open(tmp_path / "genotype.png") as image:
        assert 1000 < image.width < 1600
        assert 1000 < image.height < 1800


@pytest.mark.parametrize("name", ["genotype", "genotype.pdf", "genotype.svg.txt"])
def test_other_formats_are_refused(genotype: Genotype, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"`path` must end in \.svg or \.png, got 'genotype"):
        draw_genotype(genotype, tmp_path / name)
    assert not (tmp_path / name).exists()
