import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search_space import CellGenotype, CellPosition, Genotype, PartGenotype, SearchSpace, sample_genotype

SAMPLE_ID = "bfc27b783b87"  # of seed 0 in the `space` fixture; another value means that stored ids no longer match


def with_weights(cell: CellGenotype, weight: float) -> CellGenotype:
    return replace(
        cell,
        resolution_pathways=tuple((direction, weight) for direction, _ in cell.resolution_pathways),
        dense_pathways=tuple((layer, weight) for layer, _ in cell.dense_pathways),
    )


def edit_parts(genotype: Genotype, edit: Callable[[CellGenotype], CellGenotype]) -> Genotype:
    return replace(genotype, parts=tuple(PartGenotype(cells=tuple(map(edit, part.cells))) for part in genotype.parts))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("num_resolutions", "num_layers"), [(1, 1), (3, 6), (4, 9)])
def test_json_gives_the_genotype_back(tmp_path: Path, seed: int, num_resolutions: int, num_layers: int) -> None:
    space = SearchSpace(num_channels=32, num_resolutions=num_resolutions, num_layers=num_layers)
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(seed))
    assert Genotype.from_dict(json.loads(genotype.to_json())) == genotype
    genotype.save(tmp_path / "genotype.json")
    loaded = Genotype.load(tmp_path / "genotype.json")
    assert loaded == genotype
    assert hash(loaded) == hash(genotype)
    assert loaded.genotype_id == genotype.genotype_id
    assert [path.name for path in tmp_path.iterdir()] == ["genotype.json"]  # nothing is left beside it


def test_pathway_weights_survive_json_to_the_last_digit(genotype: Genotype) -> None:
    genotype = edit_parts(genotype, lambda cell: with_weights(cell, 0.1 + 0.2))
    assert Genotype.from_dict(json.loads(genotype.to_json())) == genotype


def test_json_has_one_cell_per_line(genotype: Genotype) -> None:
    lines = genotype.to_json().splitlines()
    assert sum('"op"' in line for line in lines) == sum(len(part.cells) for part in genotype.parts)


def test_the_id_is_the_same_on_every_machine(genotype: Genotype) -> None:
    assert genotype.genotype_id == SAMPLE_ID


def test_the_id_does_not_depend_on_pathway_weights_or_their_order(genotype: Genotype) -> None:
    def reverse(cell: CellGenotype) -> CellGenotype:
        return replace(
            cell,
            resolution_pathways=cell.resolution_pathways[::-1],
            dense_pathways=cell.dense_pathways[::-1],
        )

    assert edit_parts(genotype, lambda cell: with_weights(cell, 0.25)).genotype_id == genotype.genotype_id
    assert edit_parts(genotype, reverse).genotype_id == genotype.genotype_id


def test_the_id_depends_on_everything_else(genotype: Genotype) -> None:
    first, *rest = genotype.parts
    last = first.cells[-1]

    def swap_last(**changes: Any) -> Genotype:
        part = PartGenotype(cells=(*first.cells[:-1], replace(last, **changes)))
        return replace(genotype, parts=(part, *rest))

    others = [
        replace(genotype, num_channels=32),
        replace(genotype, parts=(*rest, first)),
        swap_last(op="skip" if last.op != "skip" else "hin"),
        swap_last(in_width=12 - last.in_width),
        swap_last(out_width=12 - last.out_width),
        swap_last(dense_pathways=()),
    ]
    assert len({genotype.genotype_id, *(other.genotype_id for other in others)}) == 7


def test_the_space_of_a_genotype_has_the_operators_that_occur(genotype: Genotype, space: SearchSpace) -> None:
    assert set(genotype.space.candidate_ops) == {cell.op for part in genotype.parts for cell in part.cells}
    assert genotype.space.cells == space.cells


Edit = Callable[[dict[str, Any]], Any]


def set_cell(key: str, value: Any) -> Edit:
    return lambda data: data["parts"][1][-1].update({key: value})


def drop_cell(data: dict[str, Any]) -> None:
    """Remove the first cell of the grid, which every first row needs in this genotype."""
    del data["parts"][2][0]


def exchange_cells(data: dict[str, Any]) -> None:
    cells = data["parts"][0]
    cells[0], cells[1] = cells[1], cells[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(schema_version=2), "`schema_version` must be 1, got 2"),
        (lambda d: d.pop("schema_version"), r"missing keys \['schema_version'\]"),
        (lambda d: d.update(author="me"), r"a genotype has missing keys \[\] and unknown keys \['author'\]"),
        (
            lambda d: d["parts"][0][0].update(colour="red"),
            r"a cell has missing keys \[\] and unknown keys \['colour'\]",
        ),
        (lambda d: d["parts"][0][0].pop("op"), r"a cell has missing keys \['op'\]"),
        (lambda d: d.update(genotype_id="0" * 12), "`genotype_id` '000000000000' does not belong to this architecture"),
        (lambda d: d.update(num_channels=10**9), "`num_channels` must be an integer from 16 to 1024, got 1000000000"),
        (lambda d: d.update(num_channels="16"), "`num_channels` must be an integer from 16 to 1024, got '16'"),
        (lambda d: d.update(num_channels=[]), r"`num_channels` must be an integer from 16 to 1024, got \[\]"),
        (lambda d: d.update(num_layers=10**9), "`num_layers` must be an integer from 5 to 64, got 1000000000"),
        (lambda d: d.update(num_resolutions=None), "`num_resolutions` must be an integer from 1 to 6, got None"),
        (lambda d: d.update(parts={}), "`parts` must be a list of lists of cells"),
        (lambda d: d.update(parts=[{}, {}, {}]), "`parts` must be a list of lists of cells"),
        (lambda d: d.update(parts=[[], [], []]), "`candidate_ops` must name at least one operator"),
        (lambda d: d["parts"].pop(), "a genotype must have 3 parts, got 2"),
        (lambda d: d["parts"][0].append("cell"), "a cell must be a JSON object, got str"),
        (lambda d: d["parts"][0].pop(), r"part 0: the last cell \(0, 6\) is missing"),
        (drop_cell, r"part 2: cell \(.*\): its source \(0, 1\) is missing"),
        (exchange_cells, "part 0: cells must lie on the grid and be ordered"),
        (lambda d: d["parts"][0].insert(0, d["parts"][0][0]), "part 0: two cells at one position"),
        (set_cell("layer", 7), "part 1: cells must lie on the grid"),
        (set_cell("layer", "6"), "`layer` of a cell must be an integer, got '6'"),
        (set_cell("resolution", False), "`resolution` of a cell must be an integer, got False"),
        (set_cell("op", None), "`op` of a cell must be a string, got None"),
        (set_cell("op", "pool"), "`candidate_ops` must be among .*, got pool"),
        (set_cell("op", "up"), "`candidate_ops` must be among .*, got up"),
        (set_cell("in_width", 3), r"part 1: cell \(0, 6\): `in_width` must be one of \(8, 7, 6, 5, 4\), got 3"),
        (set_cell("out_width", 8.0), r"`out_width` of a cell must be an integer, got 8\.0"),
        (
            set_cell("resolution_pathways", []),
            r"cell \(0, 6\): `resolution_pathways` must be distinct ones of .* got \[\]",
        ),
        (
            set_cell("resolution_pathways", [["down", 1.0]]),
            r"must be distinct ones of \('up', 'same'\), got \['down'\]",
        ),
        (set_cell("resolution_pathways", [["same", 0.5]] * 2), "must be distinct ones of"),
        (set_cell("resolution_pathways", "same"), r"must be a list of \[source, weight\], got 'same'"),
        (set_cell("resolution_pathways", [["same"]]), r"must be a list of \[source, weight\], got \['same'\]"),
        (set_cell("resolution_pathways", [[1, 1.0]]), r"must be a list of \[source, weight\], got \[1, 1\.0\]"),
        (set_cell("dense_pathways", [[6, 1.0]]), r"`dense_pathways` must be distinct ones of .*, got \[6\]"),
        (set_cell("dense_pathways", [[True, 1.0]]), r"must be a list of \[source, weight\], got \[True, 1\.0\]"),
        (set_cell("dense_pathways", [[0, float("nan")]]), "the weight of a pathway must be a finite number, got nan"),
        (set_cell("dense_pathways", [[0, float("inf")]]), "the weight of a pathway must be a finite number, got inf"),
        (set_cell("dense_pathways", [[0, 10**400]]), "the weight of a pathway must be a finite number"),
        (set_cell("dense_pathways", [[0, "1"]]), "the weight of a pathway must be a finite number, got '1'"),
        (set_cell("dense_pathways", [[0, True]]), "the weight of a pathway must be a finite number, got True"),
    ],
)
def test_damaged_files_are_refused_with_file_and_reason(
    genotype: Genotype, tmp_path: Path, edit: Edit, message: str
) -> None:
    data = genotype.to_dict()
    edit(data)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as error:
        Genotype.load(path)
    assert "damaged.json cannot be read" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"op: skip", b"\xff\xfe\x00", b"{" * 100_000, b"[" * 100_000])
def test_what_is_no_genotype_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"noise\.json cannot be read"):
        Genotype.load(path)


def test_a_truncated_file_is_refused_wherever_it_ends(genotype: Genotype, tmp_path: Path) -> None:
    text = genotype.to_json().rstrip()
    path = tmp_path / "truncated.json"
    for length in range(0, len(text), 97):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=r"truncated\.json cannot be read"):
            Genotype.load(path)


def test_huge_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.write_bytes(b" " * 10_000_001)
    with pytest.raises(ValueError, match="larger than 10000000 bytes"):
        Genotype.load(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        Genotype.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_a_full_disk_is_one_error_that_names_the_file_and_leaves_nothing(
    genotype: Genotype, tmp_path: Path, num_bytes: int
) -> None:
    """A limit on the size of files takes the first bytes and refuses the rest."""
    path = tmp_path / "genotype.json"
    path.write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; mend that and .* goes on: .*genotype\.json'"):
            genotype.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "before"


def test_a_genotype_cannot_be_built_wrong(genotype: Genotype) -> None:
    with pytest.raises(ValueError, match="a genotype must have 3 parts, got 1"):
        replace(genotype, parts=genotype.parts[:1])
    cell = replace(genotype.parts[0].cells[-1], position=CellPosition(5, 5))
    with pytest.raises(ValueError, match="part 0: cells must lie on the grid"):
        replace(genotype, parts=(PartGenotype(cells=(cell,)), *genotype.parts[1:]))
