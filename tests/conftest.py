"""What all tests share: a seeded generator, one thread per process, and how many examples hypothesis draws."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Equal files every time; `pytest --hypothesis-profile=thousands` draws more of them.
settings.register_profile("few", max_examples=20, derandomize=True, database=None, deadline=None)
settings.register_profile("thousands", settings.get_profile("few"), max_examples=400)
settings.load_profile("few")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, much slower beside another busy process."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
