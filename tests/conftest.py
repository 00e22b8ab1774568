"""What all tests share: a seeded generator, one thread per process, and how many examples hypothesis draws."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Equal files every time; `pytest --hypothesis-profile=thousands` draws more of them.
settings.register_profile("few", max_examples=20, derandomize=True, database=None, deadline=None)
settings.register_profile("thousands", settings.get_profile("few"), max_examples=400)
settings.load_profile("few")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Networks this small are slower on several threads, much slower beside another busy process.

    For fixtures of a whole module too: sums round in another order on two threads, and would not be equal in a test.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread_again(one_thread: None) -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
