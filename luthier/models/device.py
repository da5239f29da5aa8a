"""Where a model computes: the processor, or one GPU of Nvidia's. Which one is `training.device` of the recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic as settings

from luthier.errors import RecipeError


def chosen(word: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        RecipeError: `cuda`, and torch sees no GPU.
    """
    # Read by cuBLAS when it starts: with it, equal products give equal bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    there = torch.cuda.is_available()
    if word == "cuda" and not there:
        raise RecipeError(
            "training.device: torch sees no GPU on this machine",
            got="cuda",
            do="training.device: cpu or auto; with a GPU in place, look at its driver and at the build of torch",
        )
    return torch.device("cuda", 0) if there and word != "cpu" else torch.device("cpu")


def notes(device: torch.device) -> tuple[str, ...]:
    """What is to be said of a GPU: its name, and what does not run there as it should."""
    if device.type == "cpu":
        return ()
    from luthier.kernels import cuda

    found = torch.cuda.get_device_properties(device)
    slow = cuda.reason()
    return (
        f"computed on {found.name} with {found.total_memory / 1e9:.0f} GB",
        *([f"norms, rotation and activations run as single operations, which is slower: {slow}"] if slow else []),
    )


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, a GPU adds numbers up in an order that does not change from run to run, so that a run that was stopped
    goes on as if it had not been; a CPU does so anyway."""
    if device.type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    # Warnings and not errors: what has no such order still runs, and says so.
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
