"""What is wrong with a row's form: nothing said, cut off, broken characters, markup and phrases that nobody meant."""

from __future__ import annotations

import html
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from luthier.gate.mojibake import garbled, ungarbled
from luthier.gate.phrases import find_boilerplate, is_refusal
from luthier.gate.prose import prose, settled
from luthier.gate.rows import Field, Hit, Row
from luthier.gate.rules import Rule

if TYPE_CHECKING:
    from luthier.gate.policy import Policy

RULES: dict[str, Rule] = {
    "empty_answer": Rule(
        title="empty or near-empty answer",
        why="The model learns to say nothing.",
        remedy="Write the answer, or leave the row out.",
        severity="warn",
        mend="drop",
        about="An assistant turn without a letter, digit or emoji, or with a placeholder alone: n/a, null, todo, "
        "[deleted], lorem ipsum. Turns that call tools are answers.",
    ),
    "turn_order": Rule(
        title="turns out of order",
        why="The chat template gives the turns other places than the data meant, and the model answers itself.",
        remedy="Put the turns in order, or join neighbours of one role.",
        severity="block",
        about="A system turn after another turn; two user or two assistant turns in a row without a tool between them; "
        "a last turn that is not the assistant's.",
    ),
    "control_token": Rule(
        title="a template's control token inside content",
        why="The tokenizer reads it as the end of a turn or as another speaker: the row teaches to forge turns.",
        remedy="Remove it with luthier data clean; it was left over from a rendered template.",
        severity="block",
        mend="repair",
        about="The marks of the common templates (ChatML, Llama, Mistral, Gemma, Phi, DeepSeek, BERT), the policy's "
        "`control_tokens` and, within luthier tune, every special token of the model's own tokenizer that is no plain "
        "word. `<s>` is also HTML for struck text: to the tokenizer it is a mark.",
    ),
    "mojibake": Rule(
        title="characters read in the wrong encoding",
        why="The model learns cafÃ© for café, in several tokens instead of one.",
        remedy="Mend it with luthier data clean; export anew as UTF-8.",
        severity="warn",
        mend="repair",
        about="UTF-8 read as Windows-1252, Latin-1, 1250 or 1251, also twice, and Windows quotes read as Latin-1. The "
        "bytes are turned back exactly; where one is lost the place is only reported.",
    ),
    "lost_character": Rule(
        title="characters that were lost",
        why="What stood there cannot be told any more, and the model learns the hole.",
        remedy="Take the text from its source again.",
        severity="warn",
        about="U+FFFD, and question marks inside contractions (don?t).",
    ),
    "control_character": Rule(
        title="control characters",
        why="Tokens that no user types: remains of terminals, page breaks and binary data.",
        remedy="Remove them with luthier data clean.",
        severity="warn",
        mend="repair",
        about="C0 and C1 controls except tab and line ends, and terminal colours.",
    ),
    "html": Rule(
        title="HTML in prose",
        why="The model answers with tags and entities where people read text.",
        remedy="Strip it with luthier data clean, unless pages are what the model shall write.",
        severity="warn",
        mend="repair",
        thresholds={"tags": 1},
        about="At least `tags` tags of HTML or named or numbered entities, outside of code, unless the prompt "
        "speaks of HTML.",
    ),
    "markdown_debris": Rule(
        title="broken markdown",
        why="The model learns marks that never close.",
        remedy="Close or remove them.",
        severity="info",
        about="An odd number of ** next to words in a paragraph, links without a text or an address, escaped marks "
        r"(\*\*), outside of code.",
    ),
    "placeholder": Rule(
        title="placeholder that was never filled in",
        why="Customers are greeted as [Your Name].",
        remedy="Fill it in, or leave the row out; a template that is filled in later is fine.",
        severity="info",
        about="{{name}}, [Your Company], [Insert date here], <insert name>.",
    ),
    "boilerplate": Rule(
        title="boilerplate of another model",
        why="The tuned model says of itself what another maker made its model say.",
        remedy="Leave the row out, or write the answer anew.",
        severity="warn",
        mend="drop",
        about="“As an AI language model”, “trained by OpenAI”, “my knowledge cutoff” and kin in 11 languages, in "
        "assistant turns. A plain “I am a virtual assistant” is none.",
    ),
    "refusal": Rule(
        title="refusal as an answer",
        why="The tuned model declines what it is asked, also where the refusal was never meant.",
        remedy="Keep those that are meant, leave out the others.",
        severity="info",
        about="The first 200 characters of an assistant turn say that it cannot help, answer or write, in 9 languages.",
    ),
    "cut_answer": Rule(
        title="answer that is cut off",
        why="The model learns to stop in the middle.",
        remedy="Take the whole answer from its source, or leave the row out.",
        severity="warn",
        mend="drop",
        about="The last assistant turn has a code fence or, near its end, a bracket that is not closed, or ends with a "
        "comma, an article or a conjunction. `unfinished_answer` compares with the set.",
    ),
    "repeats_prompt": Rule(
        title="answer that repeats the prompt",
        why="The model learns to echo.",
        remedy="Cut the repetition off, or leave the row out.",
        severity="warn",
        mend="drop",
        thresholds={"characters": 30, "share": 0.5},
        about="The user's last turn, of at least `characters`, stands word for word in the answer and makes at least "
        "`share` of it, or opens it. Case and spacing do not count.",
    ),
    "repetition": Rule(
        title="text that repeats itself",
        why="A loop in the data is a loop in the model.",
        remedy="Leave the row out.",
        severity="warn",
        mend="drop",
        thresholds={"trigram_share": 0.2, "words": 30, "compression": 0.2, "bytes": 200},
        about="In texts of `words` or more, one sequence of three words makes more than `trigram_share` of all; or, "
        "from `bytes` on, zlib shrinks the text to less than `compression` of its size.",
    ),
}


def look(row: Row, policy: Policy) -> Iterator[Hit]:
    """Every rule of this module on one row."""
    yield from _turns(row)
    controls = _controls(policy.control_tokens)
    plain_text = bool(row.answer)
    for field in row.fields:
        called = ".tool_calls[" in field.path
        yield from _characters(row, field, controls)
        if not called:
            yield from _markup(row, field, policy)
            if field.role == "assistant" or (field.role == "text" and plain_text):
                yield from _said(row, field, policy)
    if row.fields and row.fields[-1].role == "assistant" and ".tool_calls[" not in row.fields[-1].path:
        yield from _answer(row, policy)


# Turns


def _turns(row: Row) -> Iterator[Hit]:
    turns: dict[str, list[str]] = {}
    for field in row.fields:
        if field.path.startswith("messages["):
            turns.setdefault(field.path.partition(".")[0], [field.role]).append(field.path)
    if not turns:
        return
    order = list(turns.items())
    wrong = ""
    for index, (name, (role, *paths)) in enumerate(order):
        before, before_paths = (order[index - 1][1][0], order[index - 1][1][1:]) if index else ("", [])
        if role == "system" and before not in ("", "system"):
            wrong = f"{name} is a system turn after a {before} turn"
        elif role == "user" and before == "user":
            wrong = f"{name} is a second user turn in a row"
        elif role == before == "assistant" and not any(".tool_calls[" in path for path in (*paths, *before_paths)):
            wrong = f"{name} is a second assistant turn in a row"
        if wrong:
            yield Hit("turn_order", row.id, wrong, name)
            return
    name, (role, *_) = order[-1]
    if role != "assistant":
        yield Hit("turn_order", row.id, f"{name}, the last turn, is a {role} turn", name)


# Characters

_CONTROL_TOKENS = (
    r"<\|[A-Za-z_][A-Za-z0-9_]{1,40}\|>|<｜[^\s｜<>]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_of_turn>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<</?SYS>>|\[(?:CLS|SEP|PAD|UNK|MASK|BOS"
    r"|EOS)\]"
)


@lru_cache
def _controls(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"{_any_of(tokens)}|{_CONTROL_TOKENS}" if tokens else _CONTROL_TOKENS)


def _any_of(tokens: Iterable[str]) -> str:
    """A pattern for the longest of the tokens, character by character: a vocabulary has up to thousands of them
    (`<unused17>`), and as mere alternatives each would be tried wherever the first character stands."""
    after: dict[str, Any] = {}
    for token in tokens:
        place = after
        for c in token:
            place = place.setdefault(c, {})
        place[""] = {}
    return _ways(after)


def _ways(after: dict[str, Any]) -> str:
    ways = "|".join(re.escape(c) + _ways(more) for c, more in after.items() if c)
    ends = "" in after
    return f"(?:{ways})?" if ways and ends else f"(?:{ways})" if len(after) > 1 else ways


_CONTROL = re.compile("\x1b\\[[0-9;]{0,20}[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80\x81\x8d\x8f\x90\x9d]")
_LOST = re.compile(r"\ufffd|\b[A-Za-z]{1,10}\?(?:t|s|re|ve|ll|m|d)\b")


def _characters(row: Row, field: Field, controls: re.Pattern[str]) -> Iterator[Hit]:
    text = field.text
    if "<" in text or "[" in text or _own(controls):
        if match := controls.search(text):
            seen = f"“{match.group()}” in {field.role} content"
            yield Hit("control_token", row.id, seen, field.path, match.start(), match.end())
    if match := _CONTROL.search(text):
        seen = f"U+{ord(match.group()[0]):04X}" + (" (a terminal sequence)" if len(match.group()) > 1 else "")
        yield Hit("control_character", row.id, seen, field.path, match.start(), match.end())
    if not text.isascii():
        if found := garbled(text):
            lost = sum(not item.plain for item in found)
            seen = f"{len(found)} places" + (f", {lost} of which cannot be turned back" if lost else "")
            yield Hit("mojibake", row.id, seen, field.path, found[0].start, found[0].end, score=float(len(found)))
    if "?" in text or "\ufffd" in text:
        if match := _LOST.search(text):
            seen = "U+FFFD" if match.group() == "\ufffd" else "a question mark inside a word"
            yield Hit("lost_character", row.id, seen, field.path, match.start(), match.end())


def _own(controls: re.Pattern[str]) -> bool:
    return controls.pattern != _CONTROL_TOKENS


# Markup

_TAG = re.compile(
    r"</?(?:a|abbr|article|b|blockquote|body|br|button|center|code|dd|del|div|dl|dt|em|font|footer|form|h[1-6]|head"
    r"|header"
    r"|hr|html|i|img|input|label|li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span|strike"
    r"|strong|style"
    r"|sub|sup|table|tbody|td|th|thead|title|tr|u|ul|video)(?:\s[^<>]{0,2000})?\s{0,3}/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(
    r"&(?:amp|quot|apos|nbsp|[lr]squo|[lr]dquo|[mn]dash|hellip|bull|copy|reg|trade|euro|pound|middot|deg|times|laquo"
    r"|raquo"
    r"|[aeiounyAEIOUNY](?:acute|grave|circ|uml|tilde|ring|cedil)|szlig|ccedil|Ccedil|lt|gt|#\d{1,6}"
    r"|#[xX][0-9a-fA-F]{1,5});"
)
_KEPT = re.compile(r"&(?:lt|gt|#(?:0{0,3}60|0{0,3}62|[xX]0{0,2}3[cCeE]));")
"""Entities that stand for < and >: written out, they would make tags."""
_ESCAPED = re.compile(r"\\[*_#`~](?=[\w*_#`~\\])")
_BOLD = re.compile(r"(?<![*\\\[])\*\*(?![*\]])(?:(?=\S)|(?<=\S\*\*))")
_POWER = re.compile(r"[\w)](?:\*\*| \*\* )[\w(]")
_LINK = re.compile(
    r"(?<!\\)\[\]\([^()\s]{0,500}\)|\[[^\[\]\n]{1,300}\]\(\s{0,9}\)|\[[^\[\]\n]{1,300}\]\((?:https?:)?[^()\s]{0,500}\Z"
)
_PLACEHOLDER = re.compile(
    r"\{\{\s{0,3}[A-Za-z][\w .-]{0,40}?\s{0,3}\}\}"
    r"|\[(?:[Yy]our|YOUR|[Ii]nsert|INSERT|[Cc]ustomer|[Cc]lient|[Cc]ompany|[Ff]irst|[Ll]ast|[Rr]ecipient)(?:['’]s)?"
    r"(?: [A-Za-z/'’]{1,20}){0,4} ?(?:[Nn]ame|NAME|[Hh]ere|HERE|[Dd]ate|[Aa]ddress|[Ee]-?mail|[Nn]umber|[Cc]ompany"
    r"|[Tt]itle|[Pp]osition)\](?!\()"
    r"|<(?:insert|your) [A-Za-z ]{1,30}>"
)


def _markup(row: Row, field: Field, policy: Policy) -> Iterator[Hit]:
    text = field.text
    if not ("<" in text or "&" in text or "**" in text or "](" in text or "\\" in text or "[" in text or "{{" in text):
        return
    plain = prose(text)
    if "<" in plain or "&" in plain:
        tags = [*_TAG.finditer(plain), *_ENTITY.finditer(plain)]
        # Pages are what some rows are about.
        if tags and len(tags) >= policy.number("html", "tags") and "html" not in row.prompt.lower():
            seen = f"{len(tags)} tags or entities, the first {tags[0].group()[:12].split()[0]}"
            yield Hit("html", row.id, seen, field.path, tags[0].start(), tags[0].end(), score=float(len(tags)))
    if "**" in plain or "](" in plain or "\\" in plain:
        yield from _debris(row, field, plain)
    if "[" in plain or "{{" in plain or "<" in plain:
        if match := _PLACEHOLDER.search(plain):
            yield Hit("placeholder", row.id, f"“{match.group()}”", field.path, match.start(), match.end())


def _debris(row: Row, field: Field, plain: str) -> Iterator[Hit]:
    if match := _LINK.search(plain):
        yield Hit("markdown_debris", row.id, "a link without a text or an address", field.path, *match.span())
    elif len(escaped := list(_ESCAPED.finditer(plain))) > 1:
        yield Hit("markdown_debris", row.id, f"{len(escaped)} escaped marks", field.path, *escaped[0].span())
    elif "**" in plain:
        start = 0
        for paragraph in plain.split("\n\n"):
            bold = list(_BOLD.finditer(paragraph))
            if len(bold) % 2 and not _POWER.search(paragraph):
                at = start + bold[-1].start()
                yield Hit("markdown_debris", row.id, "** that is not closed", field.path, at, at + 2)
                return
            start += len(paragraph) + 2


# What the assistant said

_EMPTY = re.compile(
    r"(?:n/?a|nan|null|nil|undefined|todo|tbd|xxx+|asdf+|test(?:ing)?|lorem ipsum.{0,200}|<?(?:no|empty) "
    r"(?:answer|response|output|reply)>?|[\[(<](?:deleted|removed|empty|blank|redacted|no output|no response"
    r"|noinput)[\])>])[.!]?",
    re.IGNORECASE | re.DOTALL,
)
_SAYS = re.compile(r"[^\W_]|[\u2190-\u2bff\U0001f000-\U0001faff$€£¥%+=<>≤≥≠]")


def _said(row: Row, field: Field, policy: Policy) -> Iterator[Hit]:
    """What holds for every text that is learnt."""
    text = field.text
    stripped = text.strip()
    if not _SAYS.search(text) or (len(stripped) < 240 and _EMPTY.fullmatch(stripped)):
        yield Hit("empty_answer", row.id, f"{len(stripped)} characters that say nothing", field.path, 0, len(text))
        return
    if found := find_boilerplate(text):
        yield Hit("boilerplate", row.id, f"“{found.group()}”", field.path, *found.span())
    if field.role == "assistant" and is_refusal(text):
        yield Hit("refusal", row.id, f"an answer of {len(stripped)} characters declines", field.path)
    yield from _loops(row, field, policy)


def _loops(row: Row, field: Field, policy: Policy) -> Iterator[Hit]:
    text = field.text
    words = text.split()
    # A sequence that makes a fifth of all leaves few different words; a cheap test that most rows pass.
    different = len(set(words))
    if len(words) >= policy.number("repetition", "words") and different <= 0.75 * len(words):
        most = max(Counter(zip(words, words[1:], words[2:], strict=False)).values())
        share = most / (len(words) - 2)
        if share > policy.number("repetition", "trigram_share"):
            seen = f"one sequence of three words makes {share:.0%} of {len(words)} words"
            yield Hit("repetition", row.id, seen, field.path, score=share)
            return
    if len(text) >= policy.number("repetition", "bytes") and (
        different <= 0.5 * len(words) or len(text) > 30 * len(words)
    ):
        data = text.encode("utf-8", "surrogatepass")
        ratio = len(zlib.compress(data, 1)) / len(data)
        if ratio < policy.number("repetition", "compression"):
            seen = f"shrinks to {ratio:.0%} of its {len(data)} bytes"
            yield Hit("repetition", row.id, seen, field.path, score=ratio)


# The answer as a whole

_OPEN_WORDS = """
the a an and or of because which into than my your our their whose if whether
der die das ein eine einen und oder weil et ou le les une parce y o el los las una porque gli che de het een
"""
_ENDS_OPEN = frozenset(_OPEN_WORDS.split())
_OPENERS, _CLOSERS = "([{", ")]}"


def _answer(row: Row, policy: Policy) -> Iterator[Hit]:
    field = row.fields[-1]
    if why := _cut(field.text):
        yield Hit("cut_answer", row.id, why, field.path, len(field.text.rstrip()) - 1, len(field.text))
    yield from _echoes(row, field, policy)


def _cut(text: str) -> str:
    """Why the text must have been cut off; empty where nothing says so."""
    if "```" in text and text.count("```") % 2:
        return "a code fence is not closed"
    end = text.rstrip()
    tail = prose(text).rstrip()[-160:] if "`" in text else end[-160:]
    line = tail.rpartition("\n")[2].split()
    if len(line) < 5:
        return ""
    if end[-1] == ",":
        return "it ends with a comma"
    if line[-1] in _ENDS_OPEN and (line[-2][-1].isalpha() or line[-2][-1] == ","):
        return f"it ends with “{line[-1]}”"
    if any(c in tail for c in _OPENERS) and _open(tail):
        return "a bracket near its end is not closed"
    return ""


def _open(tail: str) -> bool:
    """Whether a bracket stays open. Smileys are none, and any bracket closes any: [0, 1) is an interval."""
    depth = 0
    for index, c in enumerate(tail):
        if c in _OPENERS and tail[index - 1 : index] not in (":", ";", "=", "-"):
            depth += 1
        elif c in _CLOSERS:
            depth = max(0, depth - 1)
    return depth > 0


def _echoes(row: Row, field: Field, policy: Policy) -> Iterator[Hit]:
    asked = next((earlier.text for earlier in reversed(row.fields[:-1]) if earlier.role == "user"), "")
    share = policy.number("repeats_prompt", "share")
    if not policy.number("repeats_prompt", "characters") <= len(asked) <= 1.25 * len(field.text) + 16:
        return
    asked, answer = _folded(asked), _folded(field.text)
    if asked in answer and (len(asked) >= share * len(answer) or answer.startswith(asked)):
        seen = f"the user's last turn makes {len(asked) / max(1, len(answer)):.0%} of the answer"
        yield Hit("repeats_prompt", row.id, seen, field.path, score=len(asked) / max(1, len(answer)))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


# Mends


def without_tokens(text: str, tokens: Sequence[str] = ()) -> str:
    """A space for each control token, and nothing at the ends."""
    pattern = _controls(tuple(tokens))
    # A token with a space in it can come about where another was.
    return settled(lambda now: pattern.sub(" ", now).strip() if pattern.search(now) else now, text)


def without_controls(text: str) -> str:
    return settled(lambda now: _CONTROL.sub("", now), text)


def without_html(text: str) -> str:
    """Breaks and ends of blocks as line ends, other tags gone, entities as characters; code is left as it is."""
    if "<" not in text and "&" not in text:
        return text
    return settled(_stripped, text)


_BREAK = re.compile(r"<(?:br|hr)\b|</(?:p|div|li|tr|h[1-6]|ul|ol|table|blockquote|section|article)\b", re.IGNORECASE)


def _stripped(text: str) -> str:
    plain = prose(text)
    pieces, at = [], 0
    for match in sorted([*_TAG.finditer(plain), *_ENTITY.finditer(plain)], key=re.Match.start):
        if match.start() < at or _KEPT.match(match.group()):
            continue
        written = "" if match.group()[0] == "<" else html.unescape(match.group()).replace("\xa0", " ")
        pieces += [text[at : match.start()], "\n" if _BREAK.match(match.group()) else written]
        at = match.end()
    return "".join([*pieces, text[at:]])


REPAIRS: dict[str, Callable[[str], str]] = {
    "control_token": without_tokens,
    "mojibake": ungarbled,
    "control_character": without_controls,
    "html": without_html,
}
"""Rule -> the text without what the rule found. Each is idempotent."""
