"""All tests here need a GPU of Nvidia's and say so where there is none."""

import pytest
import torch

from luthier.models.device import chosen


@pytest.fixture(scope="session", autouse=True)
def card() -> torch.device:
    """The GPU."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU on this machine")
    return chosen("cuda")
