"""The lowest layers of a model by themselves: which of them training leaves alone, and how a model that runs by its own
forward pass stops below a layer or goes on from one. Models of `models.stack` need neither trick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.adapters import layer_list


def untrained(model: nn.Module) -> int:
    """How many of the lowest layers hold no trained weight. What stands below them may still hold one."""
    layers = layer_list(model)
    trained = (i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return next(trained, len(layers))


def below(backbone: nn.Module, layers: int) -> list[nn.Module]:
    """Every module of the backbone outside of layer `layers` and those above it."""
    above = {id(module) for layer in layer_list(backbone)[layers:] for module in layer.modules()}
    return [module for module in backbone.modules() if id(module) not in above]


def caught(backbone: nn.Module, layers: int, run: Callable[[], Any]) -> Tensor:
    """What enters layer `layers` of `backbone`, [1, T, H], while `run` calls it.

    Raises:
        ModelError: the layers of this family pass on something else than a tensor.
    """
    stack = layer_list(backbone)
    found: list[Any] = []
    hook = stack[layers - 1].register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        with _standing_in(list(stack[layers:]), _pass_on):
            run()
    finally:
        hook.remove()
    if not found or not isinstance(found[0], Tensor):
        raise ModelError(
            "the layers of this model pass on more than their states",
            where=type(backbone).__name__,
            do="choose an adapter that trains the lowest layer too",
        )
    return found[0]


@contextmanager
def entered(backbone: nn.Module, layers: int, states: Tensor) -> Iterator[None]:
    """Inside, the layers below `layers` give `states` [1, T, H] without computing anything."""
    stack = layer_list(backbone)
    with _standing_in(list(stack[: layers - 1]), _pass_on), _standing_in([stack[layers - 1]], lambda *_, **__: states):
        yield


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextmanager
def _standing_in(modules: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, these modules compute `forward`; the model's own loop over its layers stays as it is."""
    for module in modules:
        assert "forward" not in module.__dict__
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]
