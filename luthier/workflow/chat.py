"""Talking to a tuned model, alone or beside its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.render import Renderer
from luthier.errors import InputError
from luthier.models.policy import Policy
from luthier.recipe import Recipe, Supervised
from luthier.recipe.load import build as build_recipe
from luthier.recipe.load import load as load_recipe
from luthier.runs.folder import RunFolder
from luthier.sampling.local import Decoding, generate
from luthier.types import JSON, Message
from luthier.workflow.arms import is_run, open_arm
from luthier.workflow.tell import silent

LONGEST_ANSWER = 512


@dataclass(frozen=True)
class Speaker:
    """A model that answers messages."""

    name: str
    policy: Policy
    tokenizer: Any
    max_new_tokens: int = LONGEST_ANSWER

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.policy.model

    def answer(self, messages: str | list[JSON], *, on_text: Callable[[str], None] | None = None) -> str:
        """The model's answer, chosen greedily.

        Args:
            messages: a prompt, or messages with `role` and `content`.
            on_text: called with each further piece of text as it appears.
        """
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        turns = [
            Message(
                m["role"], m.get("content") or "", extra={k: v for k, v in m.items() if k not in ("role", "content")}
            )
            for m in given
        ]
        renderer = Renderer(self.tokenizer)
        prompt = renderer.prompt(turns)
        stop = frozenset(renderer.stop_tokens())
        room = int(getattr(self.policy.model.config, "max_position_embeddings", 1 << 30)) - len(prompt)
        if room < 1:
            raise InputError("the conversation is longer than the model can read", got=f"{len(prompt)} tokens")
        written: list[int] = []
        shown = ""

        def on_token(_: int, token: int) -> None:
            nonlocal shown
            written.append(token)
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            # An unfinished character decodes to U+FFFD; it is shown once it is whole.
            if on_text and not text.endswith("\ufffd"):
                on_text(text[len(shown) :])
                shown = text

        decoding = Decoding(max_new_tokens=min(self.max_new_tokens, room), stop=stop)
        (completion,) = generate(self.policy, [prompt], decoding, on_token=on_token)
        return str(self.tokenizer.decode(list(completion.tokens), skip_special_tokens=True)).strip()


def open_chat(target: str, *, against: str | None = None) -> list[Speaker]:
    """The models that answer: `target`, and `against` (`base` is the base of a run) before it.

    Raises:
        LuthierError: a model cannot be loaded, or it cannot write.
    """
    recipe = recipe_of(target)
    if not isinstance(recipe.objective, Supervised) and is_run(target) and recipe.objective is not None:
        if recipe.objective.kind != "text":
            raise InputError(
                "this model gives labels or numbers and does not chat",
                where=target,
                do=f"luthier evaluate {target} --data FILE",
            )
    speakers = [_speaker(target, recipe)]
    if against is not None:
        speakers.insert(0, _speaker(recipe.model.source if against == "base" else against, recipe, name=against))
    return speakers


def load(target: str | Path) -> Speaker:
    """Opens a run folder, a packaged model or a model source for answering."""
    return open_chat(str(target))[0]


def recipe_of(target: str) -> Recipe:
    """A run's resolved recipe, or the plain one of a model source."""
    if is_run(target):
        return load_recipe(RunFolder(Path(target)).recipe)
    return build_recipe({"model": {"source": target}, "data": {"train": ["-"]}}, where=target)


def _speaker(target: str, recipe: Recipe, *, name: str | None = None) -> Speaker:
    arm = open_arm(target, recipe, None, tell=silent)
    return Speaker(name or target, arm.policy, arm.tokenizer)
