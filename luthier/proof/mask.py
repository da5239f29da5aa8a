"""What is learnt, read back from the rendered rows: every answer and the end of its turn, and nothing else.

The way back shares nothing with the way there. The renderer finds answers by comparing renderings and by the characters
that tokens stand for; here the targets of a packed row are decoded and held against the messages themselves. Texts are
compared and never shown: a fault is named by its kind, and by the file and line of its row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jinja2

from luthier.batch import Batch
from luthier.data.pack import pack
from luthier.proof.measure import Proof, left_out
from luthier.types import JSON, Conversation, Example, Labelled, Message, Text
from luthier.types import Sequence as Document

MASK = "what is learnt, decoded, against the answers of the rows and the ends of their turns"
LABELS = "the label that a row is trained with, against the label that it has"

PART = "part of an answer is not learnt"
MORE = "something else than the answer is learnt"
END = "the end of the turn is not learnt, so the model would not learn to stop"
BEHIND = "what follows the end of the turn is learnt"
COUNT = "the number of stretches that are learnt is not the number of answers to learn"
SHIFT = "targets are not the tokens that follow their positions"
WEIGHT = "an answer has another weight than its row or the recipe gives it"
PROMPT = "an answer does not follow the prompt that a server would send"
TEXT = "the text that is learnt is not the text of the row"
LABEL = "a row is trained with another label than it has"
TARGETS = "tokens are learnt, though the row has a label to learn"


class Row(NamedTuple):
    """A row of the user's and what became of it."""

    example: Example
    documents: list[Document]
    """One, or the pieces of a long text."""


def mask(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    turns: str = "all",
    labels: Sequence[str] = (),
    cut: int = 0,
    rendered: Callable[[Sequence[Document]], Batch] = pack,
) -> Proof:
    """Checks every row.

    Args:
        turns: which assistant turns are learnt where a message does not say: `all` or `last`.
        labels: names of the labels, in the order of the outputs.
        cut: rows that were left out here because a length limit cut them.
        rendered: what lays documents into a batch.
    """
    compared = LABELS if isinstance(rows[0].example, Labelled) else MASK
    faults: list[tuple[str, str]] = []
    tokens = 0
    for row in rows:
        found = _fault(row, tokenizer, turns=turns, labels=labels, rendered=rendered)
        tokens += sum(int((d.weights_T != 0).sum()) for d in row.documents)
        if found:
            faults.append((found, f"{row.example.provenance.file}:{row.example.provenance.line}"))
    seen = f"{len(rows)} rows, {tokens} tokens learnt" if compared is MASK else f"{len(rows)} rows"
    detail = seen + (f"; {cut} rows that were cut to training.max_length are not among them" if cut else "")
    if faults:
        kinds = Counter(kind for kind, _ in faults)
        detail = "; ".join(
            f"{kind} ({count} of {len(rows)} rows, such as {next(at for k, at in faults if k == kind)})"
            for kind, count in kinds.most_common()
        )
    return Proof("mask", compared, float(len(faults)), 0.0, not faults, detail)


def no_rows(cut: int) -> Proof:
    """Every row that could be looked at was cut."""
    return left_out("mask", MASK, f"all of the {cut} rows looked at were cut to training.max_length")


def _fault(
    row: Row,
    tokenizer: Any,
    *,
    turns: str,
    labels: Sequence[str],
    rendered: Callable[[Sequence[Document]], Batch],
) -> str | None:
    learnt = [_learnt(document, rendered([document])) for document in row.documents]
    if any(part is None for part in learnt):
        return SHIFT
    parts = [part for part in learnt if part is not None]
    if isinstance(row.example, Conversation):
        return _conversation_fault(row.example, row.documents[0], parts[0], tokenizer, turns=turns)
    if isinstance(row.example, Text):
        return _text_fault(row.example, row.documents, parts, tokenizer)
    return _label_fault(row.example, row.documents[0], labels) or (TARGETS if any(parts) else None)


class Target(NamedTuple):
    """A token that is learnt, and its place in its document."""

    at: int
    token: int
    weight: float


def _learnt(document: Document, batch: Batch) -> list[Target] | None:
    """The targets of a document by itself in a batch, or None where they are not the tokens that stand there."""
    tokens = document.tokens_T.tolist()
    found = [
        Target(at + 1, token, weight)
        for at, token, weight in zip(
            batch.select_S.tolist(), batch.target_S.tolist(), batch.weight_S.tolist(), strict=True
        )
    ]
    right = all(t.at < len(tokens) and tokens[t.at] == t.token for t in found)
    return found if right else None


def _conversation_fault(
    example: Conversation, document: Document, learnt: list[Target], tokenizer: Any, *, turns: str
) -> str | None:
    wanted = _wanted(example.messages, turns)
    runs = list(_runs(learnt))
    if len(runs) != len(wanted):
        return COUNT
    ends = set(tokenizer.get_added_vocab().values()) | {tokenizer.eos_token_id}
    for (turn, weight), run in zip(wanted, runs, strict=True):
        message = example.messages[turn]
        fault = _run_fault(message, run, tokenizer, ends)
        if fault:
            return fault
        if any(abs(target.weight - weight) > 1e-6 for target in run):
            return WEIGHT
        before = document.tokens_T[: run[0].at].tolist()
        if not _follows_prompt(example, turn, before, tokenizer):
            return PROMPT
    return None


def _wanted(messages: Sequence[Message], turns: str) -> list[tuple[int, float]]:
    """(index of the message, weight) of every turn to learn."""
    assistant = [i for i, message in enumerate(messages) if message.role == "assistant"]
    found = []
    for i in assistant:
        own = messages[i].weight
        weight = own if own is not None else float(turns == "all" or i == assistant[-1])
        if weight:
            found.append((i, weight))
    return found


def _runs(learnt: Iterable[Target]) -> Iterable[list[Target]]:
    """Neighbouring targets together."""
    run: list[Target] = []
    for target in learnt:
        if run and target.at != run[-1].at + 1:
            yield run
            run = []
        run.append(target)
    if run:
        yield run


def _run_fault(message: Message, run: list[Target], tokenizer: Any, ends: set[int]) -> str | None:
    ids = [target.token for target in run]
    if ids[-1] not in ends:
        return BEHIND if ids[-2:-1] and ids[-2] in ends else END
    body, content = _decode(tokenizer, ids[:-1]).strip(), _again(tokenizer, message.content.strip())
    # White space that the template puts before an answer is learnt only where a token joins it to the first letter.
    blank = not _decode(tokenizer, ids[:1]).strip() and not message.content[:1].isspace()
    if body == content:
        return MORE if body and blank and _plain(message) else None
    if _plain(message):
        return PART if body in content else MORE
    # Calls, reasoning and their tags are the template's to write; the words of the message must be among them.
    parts = [_again(tokenizer, part.replace("<think>", "").strip()) for part in message.content.split("</think>")]
    return None if all(part in body for part in parts) else PART


def _plain(message: Message) -> bool:
    """Whether a message is its text and nothing else."""
    return not message.extra and "</think>" not in message.content


def _follows_prompt(example: Conversation, turn: int, before: list[int], tokenizer: Any) -> bool:
    """Whether the tokens before an answer begin with what a server sends, of which nothing is learnt."""
    messages = [message.as_dict() for message in example.messages[:turn]]
    tools = [dict(tool) for tool in example.tools] or None
    # Templates take a call's arguments as an object or as JSON text; one of the two is what was rendered.
    for asked in (messages, [_with_text_arguments(message) for message in messages]):
        try:
            text = tokenizer.apply_chat_template(asked, tools=tools, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError):
            continue
        prompt: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if before[: len(prompt)] == prompt:
            return True
    return False


def _with_text_arguments(message: JSON) -> JSON:
    """OpenAI's form of a message: the arguments of calls as JSON text."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _text_fault(
    example: Text, documents: Sequence[Document], learnt: Sequence[list[Target]], tokenizer: Any
) -> str | None:
    """All tokens in order, none twice: the first one of the text, which nothing stands before, and every target."""
    ids = [int(documents[0].tokens_T[0]), *(target.token for part in learnt for target in part)]
    if any(target.weight != 1 for part in learnt for target in part):
        return WEIGHT
    if ids[-1] != tokenizer.eos_token_id:
        return END
    first = ids[:1] if ids[0] in tokenizer.all_special_ids else []
    body = _decode(tokenizer, ids[len(first) : -1])
    return None if body.strip() == _again(tokenizer, example.text).strip() else TEXT


def _label_fault(example: Labelled, document: Document, labels: Sequence[str]) -> str | None:
    given = document.label
    if example.value is not None:
        right = len(given) == 1 and abs(given[0] - example.value) <= 1e-6 * max(1.0, abs(example.value))
        return None if right else LABEL
    if len(given) == len(labels) and len(labels) > 1:
        named = {labels[i] for i, yes in enumerate(given) if yes}
    else:
        named = {labels[int(i)] for i in given}
    return None if named == set(example.labels) else LABEL


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _again(tokenizer: Any, text: str) -> str:
    """A text as it comes back from the tokenizer, which may normalise it or lack some of its characters."""
    return _decode(tokenizer, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]).strip()
