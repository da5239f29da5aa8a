"""Every other parameter-efficient method, by PEFT's own modules: adapters that are put into a model, and prompts that
are put in front of its documents.

PEFT's wrapper is kept beside the model and not around it, so that everything else meets the model it knows. Its
adapters replace layers in place and work packed as they are. Prompts change the sequence, and PEFT adds them to rows of
one document each; here they are added to every document of a packed row, in the backbone's entrance, and taken away
from its result, so that nobody outside counts them:

    prompt_tuning, p_tuning   P virtual embeddings stand in front of each document
    prefix_tuning             the same places, whose keys and values are the trained ones in every layer

Not here: adalora, whose ranks a training loop has to move; poly, xlora and multitask_prompt_tuning, which need a task
or other adapters for every row; adaption_prompt, cartridge, cpt and shadow, which bring a forward pass of their own;
adamss, which needs a callback; lily, whose router averages over all tokens of a row, so that documents and even later
tokens would change earlier ones.

Shape suffixes as in `models.attention`; P virtual tokens of a prompt.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, RecipeError
from luthier.models import attention
from luthier.models.attention import KEYWORD, KeyValues, Layout
from luthier.recipe import Peft
from luthier.recipe.model import PROMPTS

NAME = "luthier-prefix"
_PREFIX_KEYWORD = "luthier_prefix"
_BESIDE = "luthier_peft"
_OURS = frozenset({"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
                   "peft_version"})  # fmt: skip
"""Keys of PEFT's configurations that are not settings of a method."""


@dataclasses.dataclass
class Attached:
    """PEFT's part of a model."""

    wrapper: Any
    """PEFT's wrapper of the model."""
    method: str
    enabled: bool = True
    aside: bool = False
    """The wrapper itself is called, and puts what is virtual in front."""
    real_T: Tensor | None = None
    """Between entrance and exit of the backbone: where the tokens that are not virtual stand in the longer row."""


def attached(model: nn.Module) -> Attached | None:
    """What PEFT has put into `model`, if anything. While a prompt is there, the model has to be run through its
    backbone's own `forward`, with its attention function: both add what is virtual."""
    return model.__dict__.get(_BESIDE)


def known_settings(method: str) -> list[str]:
    """Keys that a recipe may set for `method`.

    Raises:
        RecipeError: the installed PEFT does not have it.
    """
    return sorted(field.name for field in dataclasses.fields(_config_class(method)) if field.name not in _OURS)


def attach(model: Any, adapter: Peft, *, seed: int, head: tuple[str, ...] = (), loaded: bool = False) -> None:
    """Puts the method into `model` in place and freezes everything else.

    Args:
        seed: of what begins at random.
        head: modules of a sequence head, left to the caller.
        loaded: the tensors will come from files; an encoder that only makes a prompt is then left out.

    Raises:
        RecipeError: a setting is unknown or does not fit.
        ModelError: prompts for a model that they cannot be exact in.
    """
    import peft

    known = known_settings(adapter.method)
    if unknown := sorted(set(adapter.settings) - set(known)):
        raise RecipeError(
            f"adapter.settings: {adapter.method} has no such key",
            got=", ".join(unknown),
            do=f"there are {', '.join(known)}",
        )
    prompt, output = adapter.method in PROMPTS, model.get_output_embeddings()
    if prompt:
        _check_prompt(model, adapter.method, head)
    with torch.random.fork_rng(devices=[]), compilers_kept(), warnings.catch_warnings():
        # How PEFT asks transformers is between the two, and nothing that a user could change.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        try:
            config = _config_class(adapter.method)(**adapter.settings)
            if prompt:
                config.task_type, config.inference_mode = "CAUSAL_LM", loaded
            wrapper = peft.get_peft_model(model, config)
            wrapper.to(model.device)
        except (ValueError, TypeError, ImportError, KeyError, RuntimeError) as error:
            raise RecipeError(
                f"adapter: PEFT cannot adapt this model with {adapter.method} and these settings",
                got=" ".join(str(error).split())[:300],
                do=f"adapter.settings: {', '.join(known)}",
            ) from error
    if model.get_output_embeddings() is not output:
        raise ModelError(
            "PEFT changes this model's output layer, whose weight is used here as it is",
            where=type(model).__name__,
            got=adapter.method,
            do="leave the output layer out of adapter.settings; with tied weights that means the embedding too",
        )
    # Beside and not inside: as a submodule the wrapper would hold the model that holds it.
    state = model.__dict__[_BESIDE] = Attached(wrapper, adapter.method)
    if prompt:
        model.prompt_encoder = wrapper.prompt_encoder
        backbone: Any = getattr(model, model.base_model_prefix)
        backbone.register_forward_pre_hook(
            lambda module, _, given: ((), _enter(state, module, given)), with_kwargs=True
        )
        backbone.register_forward_hook(lambda _module, _inputs, output: _leave(state, output))
    if adapter.method == "prefix_tuning":
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, attend_behind_prefix)


@contextmanager
def compilers_kept() -> Iterator[None]:
    """BOFT names a compiler in the environment and leaves it there where its extension cannot be built; whatever is
    compiled afterwards, here or in a child process, would be made with it."""
    before = {name: os.environ.get(name) for name in ("CC", "CXX")}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _config_class(method: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method.upper() not in found:
        raise RecipeError("adapter.method: this version of PEFT does not have it", got=method, do="pip install -U peft")
    return found[method.upper()]


def _check_prompt(model: Any, method: str, head: tuple[str, ...]) -> None:
    if head:
        raise ModelError(
            "prompts in front of a document are for models that write: PEFT lets a classifier read the prompt's first "
            "token in place of the document's",
            got=method,
            do="adapter.kind: lora, or another method",
        )
    windows = "sliding_attention" in (getattr(model.config, "layer_types", None) or ())
    if method == "prefix_tuning" and windows:
        raise ModelError(
            "a prefix would fall out of this model's sliding windows",
            where=type(model).__name__,
            do="adapter.method: prompt_tuning, or another method",
        )


def _enter(state: Attached, backbone: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The backbone's arguments with P virtual tokens in front of each document, which is in front of each segment that
    continues no other."""
    state.real_T = None
    if state.aside:
        return given
    if state.method == "prefix_tuning":
        # At every entrance: whoever sets up the model's attention later does not know of this one.
        for inner in {id(c): c for m in backbone.modules() if (c := getattr(m, "config", None)) is not None}.values():
            inner._attn_implementation = NAME
    if not state.enabled:
        return given
    layout: Layout | None = given.get(KEYWORD)
    if layout is None:
        raise ModelError(
            "a model with a prompt was called without a layout", do="call it through luthier.models.policy"
        )
    P = int(state.wrapper.active_peft_config.num_virtual_tokens)
    positions: Tensor = given["position_ids"]
    limit = int(getattr(backbone.config, "max_position_embeddings", 0) or 0)
    if limit and int(positions.max()) + P >= limit:
        raise ModelError(
            "an example and the virtual tokens in front of it are longer than the model's positions allow",
            got=f"{int(positions.max()) + 1} and {P} tokens for {limit} positions",
            do=f"training.max_length: at most {limit - P}",
        )
    cache = None if layout.cache is None else _behind(layout.cache, P)
    if not layout.bounds:
        return {**given, "position_ids": positions + P, KEYWORD: dataclasses.replace(layout, cache=cache)}
    virtual = [P if not layout.parents or layout.parents[s] < 0 else 0 for s in range(len(layout.bounds) - 1)]
    lengths = [b - a for a, b in pairwise(layout.bounds)]
    bounds = (0, *itertools.accumulate(v + n for v, n in zip(virtual, lengths, strict=True)))
    real_TH = backbone.get_input_embeddings()(given["input_ids"])[0]
    prompt = state.wrapper.get_prompt(1)
    more: dict[str, Any] = {}
    if state.method == "prefix_tuning":
        starts = [a for a, v in zip(bounds, virtual, strict=False) if v]
        more[_PREFIX_KEYWORD] = (starts, [(layer.keys, layer.values) for layer in prompt.layers])
        # Whatever stands in these places is never read: its keys and values are replaced in every layer.
        virtual_PH = real_TH.new_zeros(P, real_TH.shape[1])
    else:
        virtual_PH = prompt[0].to(real_TH.dtype)
    first = torch.arange(P, device=positions.device)
    pieces = zip(virtual, torch.split(real_TH, lengths), torch.split(positions[0], lengths), strict=True)
    parts = [part for v, x, p in pieces for part in ((virtual_PH[:v], first[:v]), (x, p + P))]
    embeddings, places = torch.cat([x for x, _ in parts]), torch.cat([p for _, p in parts])
    state.real_T = torch.cat([torch.arange(a + v, b) for v, (a, b) in zip(virtual, pairwise(bounds), strict=True)])
    return {
        **{key: value for key, value in given.items() if key != "input_ids"},
        "inputs_embeds": embeddings[None],
        "position_ids": places[None],
        KEYWORD: dataclasses.replace(layout, bounds=bounds, cache=cache),
        **more,
    }


def _behind(cache: KeyValues, P: int) -> KeyValues:
    """The same storage as a model sees it whose rows begin with P virtual tokens."""
    return dataclasses.replace(cache, capacity=cache.capacity + P, lengths_B=cache.lengths_B + P)


def _leave(state: Attached, output: Any) -> Any:
    """The backbone's result without the virtual tokens."""
    if state.real_T is not None:
        output.last_hidden_state = output.last_hidden_state[:, state.real_T]
        state.real_T = None
    return output


def attend_behind_prefix(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """`attention.attend` with the keys and values of a prefix in the first P places of each document."""
    prefix = rest.pop(_PREFIX_KEYWORD, None)
    if prefix is not None:
        starts, layers = prefix
        keys, values = layers[module.layer_idx]
        key, value = _replaced(key, keys, starts), _replaced(value, values, starts)
    return attention.attend(module, query, key, value, attention_mask, **rest)


def _replaced(row: Tensor, first: Tensor, starts: list[int]) -> Tensor:
    """[1, k, T, d] with `first` [1, k, P, d] from each of `starts` on."""
    P = first.shape[2]
    documents = torch.split(row, [b - a for a, b in pairwise([*starts, row.shape[2]])], 2)
    return torch.cat([part for d in documents for part in (first.to(row.dtype), d[:, :, P:])], 2)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, PEFT's part of `model` is off."""
    state = attached(model)
    if state is None:
        yield
        return
    state.enabled = False
    try:
        if state.method in PROMPTS:
            yield
        else:
            with state.wrapper.disable_adapter():
                yield
    finally:
        state.enabled = True


@contextmanager
def by_peft(model: nn.Module) -> Iterator[Any]:
    """What runs `model` with its adapter as PEFT does: its wrapper where that puts a prompt in front of the document of
    each row, whose outputs may then begin with those of the prompt; else the model itself."""
    state = attached(model)
    if state is None or state.method not in PROMPTS:
        yield model
        return
    state.aside = True
    try:
        with warnings.catch_warnings():
            # How PEFT asks transformers is between the two, and nothing that a user could change.
            warnings.simplefilter("ignore", FutureWarning)
            yield state.wrapper
    finally:
        state.aside = False


def merge(model: nn.Module) -> None:
    """Folds PEFT's adapter into the weights in place.

    Raises:
        ModelError: the method has no merged form.
    """
    state = attached(model)
    if state is None:
        return
    no_form = ModelError(
        "this method cannot be merged into the weights", got=state.method, do="serve base and adapter, or train a LoRA"
    )
    if state.method in PROMPTS:
        raise no_form
    try:
        merged = state.wrapper.merge_and_unload()
    except (NotImplementedError, ValueError, AttributeError) as error:
        raise no_form from error
    assert merged is model, "PEFT merges in place"
    del model.__dict__[_BESIDE]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """What PEFT writes into `adapter_model.safetensors`, by the names in it."""
    import peft

    state = attached(model)
    assert state is not None
    found = peft.get_peft_model_state_dict(state.wrapper, save_embedding_layers=False)
    # Copies where PEFT shares a tensor between names, which safetensors cannot store.
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def config(model: nn.Module) -> dict[str, Any]:
    """What PEFT writes into `adapter_config.json`: every setting, because PEFT takes one that is left out for an older
    format in some methods (OFT); sets as sorted lists."""
    state = attached(model)
    assert state is not None
    whole = state.wrapper.peft_config["default"].to_dict()
    said = {key: value for key, value in whole.items() if key not in _OURS and value is not None}
    return {
        "peft_type": state.method.upper(),
        "peft_version": version("peft"),
        **{key: sorted(value) if isinstance(value, set) else value for key, value in said.items()},
    }


def load(model: nn.Module, adapter: Peft, saved: dict[str, Tensor], *, where: str) -> None:
    """Puts saved tensors (names as in the file) into a model and attaches the method first.

    Raises:
        ModelError: they do not fit.
    """
    import peft

    attach(model, adapter, seed=0, loaded=True)
    state = attached(model)
    assert state is not None
    expected = {name: tensor.shape for name, tensor in tensors(model).items()}
    if expected != {name: tensor.shape for name, tensor in saved.items()}:
        raise ModelError("this adapter belongs to another model", where=where, got="other names or sizes of tensors")
    peft.set_peft_model_state_dict(state.wrapper, saved)
