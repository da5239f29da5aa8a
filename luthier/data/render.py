"""Examples become tokens with a loss weight for each, through the tokenizer's own chat template and nothing else.

The loss mask needs no markers in the template. For an assistant turn three renderings are compared, all by the same
template: the serving prompt before the turn, the conversation up to and with the turn, and the whole conversation.

    prompt      <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    with turn   <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
    learnt                                                                Hello<|im_end|>

The whole conversation is tokenised once, and every supervised turn is held to the same rule: the tokens of its serving
prompt are the first tokens of the rendering, so what is learnt is what a server will ask for. A turn for which this
does not hold is an error, never a guess. Nothing here imports torch or transformers: a fast tokenizer is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np

from luthier.data.length import Frame
from luthier.errors import DataError, ModelError
from luthier.types import JSON, Conversation, Labelled, Message, Sequence, Text

Turns = Literal["all", "last"]
Tools = tuple[Mapping[str, Any], ...]

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
PROBE_QUESTION, PROBE_ANSWER = "Which way to the station?", "Second street on the left."
TEMPLATE = "the chat template"


class Ending(NamedTuple):
    """What the template writes around an answer, seen on a neutral conversation of two turns."""

    opening: str
    """Between the serving prompt and the answer: usually nothing, or an empty thinking block."""
    core: str
    """After the answer, up to and with the first token that can end a turn: `<|im_end|>`."""
    whole: str
    """After the answer, up to the end of the rendering: `<|im_end|>\\n`."""
    token: int
    """The token that ends the turn."""


class Shown(NamedTuple):
    """One token as a reader sees it, and its loss weight."""

    text: str
    weight: float


class _Span(NamedTuple):
    """A supervised stretch of the rendering, in characters, and where its serving prompt ends, in tokens."""

    start: int
    stop: int
    cut: int


@dataclass(frozen=True)
class Renderer:
    """Renders examples with one tokenizer. `tokenizer` is a fast tokenizer of `transformers`.

    Raises:
        ModelError: the tokenizer is a slow one, which cannot say which characters a token stands for.
    """

    tokenizer: Any

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                "this tokenizer cannot say which characters a token stands for, so no exact loss mask can be made",
                got=type(self.tokenizer).__name__,
                do="use a model whose folder holds a tokenizer.json",
            )

    @cached_property
    def frame(self) -> Frame:
        """The special tokens around a document, such as [CLS] and [SEP], or a BOS alone."""
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        return Frame(ids[0] if special[0] else None, ids[-1] if special[-1] else None)

    @cached_property
    def ending(self) -> Ending:
        """How the template opens and ends an answer.

        Raises:
            ModelError: no token ends the turn, or the template does not render question and answer as it should.
        """
        question, answer = Message("user", PROBE_QUESTION), Message("assistant", PROBE_ANSWER)
        prompt = self._probe((question,), generate=True)
        both = self._probe((question, answer), generate=False)
        if not both.startswith(prompt):
            raise _parted(prompt, both, do="use another template: model.template, a Jinja file or `plain`")
        opening, found, whole = both[len(prompt) :].partition(PROBE_ANSWER)
        if not found:
            raise ModelError(
                "the chat template does not write the assistant's answer as it is",
                where=TEMPLATE,
                got=f"{opening!r} for the answer {PROBE_ANSWER!r}",
                do="use another template: model.template, a Jinja file or `plain`",
            )
        tokens, offsets = self._encode(both)
        after = len(both) - len(whole)
        for token, (start, stop) in zip(tokens, offsets, strict=True):
            if start >= after and token in self._added:
                # A token may swallow the whitespace beside it (`rstrip`); what it is called is the exact text.
                stop = (
                    min(stop, start + len(self._added[token])) if both.startswith(self._added[token], start) else stop
                )
                return Ending(opening, both[after:stop], whole, token)
        raise ModelError(
            "no token ends an assistant turn in the chat template, so a model trained with it would never stop",
            where=TEMPLATE,
            got=f"after the answer comes {whole!r}" if whole else "nothing comes after the answer",
            do="let the template end assistant turns with a special token of this tokenizer, such as eos_token",
        )

    def stop_tokens(self) -> tuple[int, ...]:
        """The tokens at which generation ends: the one that ends a turn in the template, and the tokenizer's EOS."""
        eos = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys(token for token in (self.ending.token, eos) if token is not None))

    def render(self, conversation: Conversation, *, turns: Turns = "all") -> Sequence:
        """The conversation's tokens; each supervised turn weighs its answer and its end-of-turn token.

        A message's own `weight` overrides `turns`. Supervised are the content, tool calls and reasoning of the turn as
        the template writes them, up to and with the end-of-turn token. Whatever the template puts between the serving
        prompt and the answer by itself, and the newline after the end of the turn, weigh nothing. A token that holds
        both the template's leading space and the first letter of the answer is supervised: a server has to write it.

        Raises:
            DataError: this row cannot be rendered exactly: the template refuses or leaves out one of its messages,
                rewrites an answer, or a token reaches over the cut between prompt and answer.
            ModelError: the template renders a supervised turn in another way once later turns follow.
        """
        weights = _turn_weights(conversation, turns)
        whole = self.conversation_text(conversation)
        _refuse_left_out(conversation, whole)
        tokens, offsets = self._encode(whole)
        offsets_T2 = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        index_T = np.arange(len(tokens))
        weights_T = np.zeros(len(tokens), dtype=np.float32)
        for turn, weight in weights.items():
            span = self._span(conversation, turn, whole, tokens)
            inside_T = (offsets_T2[:, 1] > span.start) & (offsets_T2[:, 0] < span.stop) & (index_T >= span.cut)
            weights_T[inside_T] = weight
        return Sequence(conversation.id, np.asarray(tokens, dtype=np.int32), weights_T)

    def prompt(self, messages: Iterable[Message], tools: Tools = ()) -> list[int]:
        """The tokens that a server gives the model. A closing assistant message is the answer and is left away.

        Raises:
            DataError: there is nothing to answer, or the template refuses these messages.
        """
        asked = tuple(messages)
        if asked and asked[-1].role == "assistant":
            asked = asked[:-1]
        if not asked:
            raise DataError("a prompt needs at least one message before the answer")
        if not self.tokenizer.chat_template:
            raise ModelError(
                "this model has no chat template, so it cannot be asked anything",
                do="a model of plain text is for `luthier evaluate`; to chat, train it on conversations",
            )
        try:
            return self._encode(self._text(asked, tools, generate=True))[0]
        except (jinja2.TemplateError, TypeError) as error:
            raise self._refused(asked, tools, error, where="") from None

    def render_text(self, example: Text) -> Sequence:
        """Plain text: BOS where the tokenizer puts one, the text, and EOS. All is supervised except the first token,
        which nothing stands before."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError(
                "the tokenizer has no EOS token to end a text with", do="use a tokenizer with an eos_token"
            )
        first = [] if self.frame.first is None else [self.frame.first]
        tokens = [*first, *self._encode(example.text)[0], eos]
        if len(tokens) < 2:
            raise DataError("an empty text has nothing to learn", where=_where(example))
        weights_T = np.ones(len(tokens), dtype=np.float32)
        weights_T[0] = 0
        return Sequence(example.id, np.asarray(tokens, dtype=np.int32), weights_T)

    def render_document(self, example: Labelled, label: tuple[float, ...]) -> Sequence:
        """A text to classify, with the tokenizer's own special tokens; no token is a target."""
        tokens = np.asarray(self.document(example.text), dtype=np.int32)
        if len(tokens) == 0:
            raise DataError("an empty text has no tokens to classify", where=_where(example))
        return Sequence(example.id, tokens, np.zeros(len(tokens), dtype=np.float32), label)

    def document(self, text: str) -> list[int]:
        """The tokens of a text to classify."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    @cached_property
    def _added(self) -> dict[int, str]:
        """Tokens with a place of their own in the vocabulary, among them the special ones, by id."""
        return {token: text for text, token in self.tokenizer.get_added_vocab().items()}

    @cached_property
    def _arguments_as_text(self) -> bool:
        """Whether the template wants a call's arguments as JSON text: some join them to a string as they are."""
        arguments = {"city": "Oslo"}
        call = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        messages = [{"role": "user", "content": PROBE_QUESTION}]
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})  # type: ignore[dict-item]
        try:
            return repr(arguments) in self._apply(messages, None, generate=False)
        except TypeError:
            return True
        except jinja2.TemplateError:
            return False

    def _apply(self, messages: list[JSON], tools: list[JSON] | None, *, generate: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=generate
        )
        return text

    def _text(self, messages: Iterable[Message], tools: Tools, *, generate: bool) -> str:
        plain = [_plain(message, self) for message in messages]
        return self._apply(plain, [dict(tool) for tool in tools] or None, generate=generate)

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens, and the characters that each stands for. The template has written all special tokens itself."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]

    def _probe(self, messages: tuple[Message, ...], *, generate: bool) -> str:
        """A neutral rendering; what goes wrong here is the template's doing."""
        if not self.tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template", do="set model.template: a Jinja file or `plain`")
        try:
            return self._text(messages, (), generate=generate)
        except (jinja2.TemplateError, TypeError) as error:
            raise ModelError(
                "the chat template cannot render a question and its answer",
                where=TEMPLATE,
                got=f"{type(error).__name__}: {error}",
                do="use another template: model.template, a Jinja file or `plain`",
            ) from None

    def conversation_text(self, conversation: Conversation) -> str:
        """The whole conversation as the template writes it. Raises DataError where the template refuses it."""
        try:
            return self._text(conversation.messages, conversation.tools, generate=False)
        except (jinja2.TemplateError, TypeError) as error:
            raise self._refused(conversation.messages, conversation.tools, error, where=_where(conversation)) from None

    def _refused(self, messages: tuple[Message, ...], tools: Tools, error: Exception, *, where: str) -> DataError:
        """The template raised an error on a row: names the role at fault where leaving that role out cures it."""
        roles = list(dict.fromkeys(message.role for message in messages))
        # A template's own words are public only if they stand in the template; the rest could quote the row.
        said = str(error) if str(error) in template_source(self.tokenizer) else type(error).__name__
        got = f"roles {', '.join(message.role for message in messages)}; the template says: {said}"
        for role in roles:
            if role in ("user", "assistant"):
                continue
            try:
                self._text([m for m in messages if m.role != role], tools, generate=False)
            except (jinja2.TemplateError, TypeError, ValueError):
                continue
            return DataError(
                f"the chat template refuses messages of role {role!r}",
                where=where,
                got=got,
                do=f"move the {role} text into a user message, leave it out, or set model.template",
            )
        return DataError(
            "the chat template cannot render this conversation",
            where=where,
            got=got,
            do="bring its turns into the order that the template wants, or set model.template",
        )

    def _span(self, conversation: Conversation, turn: int, whole: str, tokens: list[int]) -> _Span:
        """Where assistant turn number `turn` (index of its message) is learnt."""
        messages, tools = conversation.messages, conversation.tools
        if turn == 0:
            raise DataError(
                "an assistant turn before any other message answers nothing",
                where=_where(conversation),
                do="give that message `weight: 0`, or remove it",
            )
        try:
            prompt = self._text(messages[:turn], tools, generate=True)
            until = whole if turn == len(messages) - 1 else self._text(messages[: turn + 1], tools, generate=False)
        except (jinja2.TemplateError, TypeError) as error:
            raise self._refused(messages[: turn + 1], tools, error, where=_where(conversation)) from None
        if not until.startswith(prompt):
            raise self._unstable(conversation, turn)
        start, stop = self._answer(conversation, turn, until[len(prompt) :])
        start, stop = start + len(prompt), stop + len(prompt)
        if not whole.startswith(until[:stop]):
            raise self._unstable(conversation, turn)
        prompt_tokens = self._encode(prompt)[0]
        if tokens[: len(prompt_tokens)] != prompt_tokens:
            answer = messages[turn].content
            raise DataError(
                "a token reaches over the cut between prompt and answer, so a server would see other tokens",
                where=f"{_where(conversation)}, message {turn + 1}",
                got=f"the prompt ends in {_kind_of(prompt[-1:])}, the answer begins with {_kind_of(answer[:1])}",
                do="remove white space at the start of the answer"
                if answer[:1].isspace()
                else "let the template end its generation prompt in a special token or a single newline",
            )
        return _Span(start, stop, len(prompt_tokens))

    def _answer(self, conversation: Conversation, turn: int, own: str) -> tuple[int, int]:
        """First supervised character and the end of the end-of-turn token, in `own`: all that the template writes
        after the serving prompt for this turn."""
        message = conversation.messages[turn]
        body, core = self._without_end(own)
        if body is None:
            raise DataError(
                "no token ends this assistant turn in the rendering",
                where=f"{_where(conversation)}, message {turn + 1}",
                do="use another template: model.template",
            )
        stop = len(body) + len(core)
        reasoning = [message.extra[key] for key in REASONING_KEYS if isinstance(message.extra.get(key), str)]
        if any(text.strip() and text.strip() in body for text in reasoning):
            return 0, stop
        opening = len(self.ending.opening) if body.startswith(self.ending.opening) else 0
        if message.extra.get("tool_calls"):
            if message.content.strip() not in body or not body[opening:].replace(message.content.strip(), "").strip():
                raise _rewritten(conversation, turn, "leaves out the tool calls or the text beside them")
            return opening, stop
        # White space at the end of the template's opening is not the answer's, even where the two look alike.
        for first in (opening, 0):
            for content in _trimmings(message.content):
                if body.endswith(content) and len(body) - len(content) >= first:
                    return len(body) - len(content), stop
        # Templates of thinking models take the answer apart at the closing tag and set new white space around it.
        parts = [part.replace("<think>", "").strip() for part in message.content.split("</think>")]
        if len(parts) > 1 and all(part in body for part in parts):
            return 0, stop
        raise _rewritten(conversation, turn, "leaves out or rewrites part of the answer")

    def _without_end(self, own: str) -> tuple[str | None, str]:
        """The turn without its end, and the end up to the end-of-turn token; None where nothing ends it."""
        if own.endswith(self.ending.whole):
            return own[: len(own) - len(self.ending.whole)], self.ending.core
        # A call of a tool may end in another token than an answer does (`<|eom_id|>`).
        bare = own.rstrip()
        ends = [text for text in self._added.values() if bare.endswith(text)]
        if not ends:
            return None, ""
        end = max(ends, key=len)
        return bare[: len(bare) - len(end)], end

    def _unstable(self, conversation: Conversation, turn: int) -> ModelError:
        """Shows where the renderings part, on neutral words in place of the row's own."""
        neutral = _neutral(conversation.messages)
        got = f"message {turn + 1} of {len(neutral)} ({_where(conversation)})"
        try:
            prompt = self._text(neutral[:turn], (), generate=True)
            until = self._text(neutral[: turn + 1], (), generate=False)
            whole = self._text(neutral, (), generate=False)
        except (jinja2.TemplateError, TypeError):
            return _parted("", "", do="objective.turns: last", got=got)
        pair = (prompt, until) if not until.startswith(prompt) else (until, whole)
        return _parted(*pair, do="objective.turns: last", got=got)


def _turn_weights(conversation: Conversation, turns: Turns) -> dict[int, float]:
    """Weights above zero of assistant turns, by the index of their message."""
    messages = conversation.messages
    assistant = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for index, message in enumerate(messages):
        if message.weight and message.role != "assistant":
            raise DataError(
                "only assistant messages can be learnt",
                where=f"{_where(conversation)}, message {index + 1}",
                got=f"weight {message.weight:g} on a message of role {message.role!r}",
                do="remove the weight",
            )
    weights = {}
    for index in assistant:
        chosen = 1.0 if turns == "all" or index == assistant[-1] else 0.0
        own = messages[index].weight
        weights[index] = chosen if own is None else own
    weights = {index: weight for index, weight in weights.items() if weight != 0}
    if not weights:
        got = "no assistant message" if not assistant else f"weight 0 on {len(assistant)} assistant message(s)"
        raise DataError("nothing in this conversation is to be learnt", where=_where(conversation), got=got)
    return weights


def _refuse_left_out(conversation: Conversation, whole: str) -> None:
    """Every message other than an answer must be in the rendering, as it is or escaped as JSON."""
    for index, message in enumerate(conversation.messages):
        content = message.content.strip()
        if message.role == "assistant" or not content or content in whole:
            continue
        if any(json.dumps(content, ensure_ascii=ascii_only)[1:-1] in whole for ascii_only in (False, True)):
            continue
        raise DataError(
            f"the chat template leaves out the content of a message of role {message.role!r}",
            where=f"{_where(conversation)}, message {index + 1}",
            got=f"{len(content)} characters that are not in the rendering",
            do=f"move the {message.role} text into a user message, or set model.template",
        )


def _plain(message: Message, renderer: Renderer) -> JSON:
    """A message as templates take it, a call's arguments in the form that this template takes."""
    row = message.as_dict()
    if not row.get("tool_calls"):
        return row
    as_text = renderer._arguments_as_text
    row["tool_calls"] = [_with_arguments(call, as_text=as_text) for call in row["tool_calls"]]
    return row


def _with_arguments(call: Any, *, as_text: bool) -> Any:
    """OpenAI writes arguments as JSON text, most templates take a mapping: text would be quoted twice."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return call
    return {**call, "function": {**function, "arguments": arguments}}


def _trimmings(content: str) -> list[str]:
    """An answer as it is, and as templates trim it, longest first."""
    kinds = {content, content.lstrip("\n"), content.rstrip("\n"), content.strip("\n")}
    kinds |= {content.lstrip(), content.rstrip(), content.strip(), content.strip("\n").lstrip()}
    return sorted(kinds, key=len, reverse=True)


def _neutral(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The same roles with words that are nobody's."""
    return tuple(Message(message.role, f"Text {index}.") for index, message in enumerate(messages, start=1))


def template_source(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return "".join(template.values()) if isinstance(template, dict) else template or ""


def _where(example: Conversation | Text | Labelled) -> str:
    return f"{example.provenance.file}:{example.provenance.line} (example {example.id})"


def _kind_of(character: str) -> str:
    return {"": "nothing", "\n": "a newline", " ": "a space"}.get(
        character, "white space" if character.isspace() else "text"
    )


def _rewritten(conversation: Conversation, turn: int, what: str) -> DataError:
    return DataError(
        f"the chat template {what}",
        where=f"{_where(conversation)}, message {turn + 1}",
        got=f"an answer of {len(conversation.messages[turn].content)} characters",
        do="give that message `weight: 0`, change it, or set model.template",
    )


def _parted(expected: str, seen: str, *, do: str, got: str = "") -> ModelError:
    """Two neutral renderings that should begin alike, and where they part."""
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, seen, strict=False)) if a != b), min(len(expected), len(seen))
    )
    lines = [got] if got else []
    if at < len(expected):
        before = expected[max(0, at - 40) : at]
        lines += [f"alike up to character {at}: ...{before!r}", f"then {expected[at : at + 40]!r}"]
        lines += [f"or   {seen[at : at + 40]!r}"]
    return ModelError(
        "the chat template writes a turn differently once it is answered or followed by others, so training and "
        "serving would differ",
        where=TEMPLATE,
        got="\n       ".join(lines),
        do=do,
    )


def describe(sequence: Sequence, tokenizer: Any) -> list[Shown]:
    """Every token as text with its weight; the texts joined are the decoded sequence.

    A character that takes several tokens is shown with the last of them, the others show as empty.
    """
    ids = sequence.tokens_T.tolist()
    shown: list[Shown] = []
    base = done = 0  # texts before `done` are shown; decoding starts at `base`, so that spaces between tokens stay
    for index, weight in enumerate(sequence.weights_T.tolist()):
        before, after = (_decode(tokenizer, ids[base:stop]) for stop in (done, index + 1))
        complete = not after.endswith("\ufffd") or index == len(ids) - 1
        shown.append(Shown(after[len(before) :] if complete else "", weight))
        if complete:
            base, done = done, index + 1
    return shown


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
