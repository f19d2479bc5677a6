from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# TRL itself still reads what transformers has deprecated.
_NOT_OURS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "methods" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings(_NOT_OURS))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
