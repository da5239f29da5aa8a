"""Forms in which texts are compared, and the keys and shingles made of them.

                                                            Don't  ask: "ÉTÉ", 3.5 mg!
    normal     NFKC, case folded, white space collapsed     don't ask: "été", 3.5 mg!
    bare       the normal form without punctuation          dont ask été 3.5 mg
    template   the bare form, each run of digits as 0       dont ask été 0.0 mg

Punctuation that changes a number stays: 3.5 is not 35, -5 not 5, 12:30 not 12 30. Symbols stay too: 👍 is not 👎; but
signs of currencies go.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from luthier.gate.rows import Row

Kind = Literal["characters", "pairs", "triples"]
"""Shingles: runs of 4 characters (3 in scripts without spaces), of 2 words, of 3 words."""
KINDS: tuple[Kind, ...] = get_args(Kind)
PAIRS_FROM = 8
"""Words from which a text is compared by pairs of words. Two neighbours in any text of one field repeat seldom by
chance; triples would lose a text of 20 words with one word changed (Jaccard 0.71; pairs: 0.81)."""
TRIPLES_FROM = 48
_SHORTEST = 0.7
"""Two texts this unlike in length can be near duplicates, so what stands within it of a bound has both kinds."""
Hashes = NDArray[np.uint64]


def normal(text: str) -> str:
    """The form whose equality makes an exact duplicate. `normal(normal(text)) == normal(text)`."""
    if text.isascii():
        return " ".join(text.lower().split())
    # Folding can undo the composition (U+0345 and the like), so it is done twice, as Unicode's toNFKC_Casefold does.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(unicodedata.normalize("NFKC", folded.casefold()).split())


def bare(normal_form: str) -> str:
    """The normal form without punctuation; as it is where it holds nothing else."""
    return " ".join(_PUNCTUATION.sub(" ", _APOSTROPHES.sub("", normal_form)).split()) or normal_form


def template(bare_form: str) -> str:
    return _DIGITS.sub("0", bare_form)


def key(form: str) -> int:
    """64 bits of a form. Among a million different ones, two are alike with a chance of one in 37 million."""
    return int.from_bytes(blake2b(form.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def lead(row: Row) -> int:
    """How many characters of a row's prompt are system and developer turns that stand before all others.

    An agent's rows share a policy of a thousand words before one sentence of their own: with it, all would be alike. So
    rows are compared by what stands after it. 0 where nothing does.
    """
    end = 0
    for field in row.fields:
        if field.role not in ("system", "developer") or not row.prompt.startswith(field.text, end):
            break
        end += len(field.text) + 1
    return end if row.prompt[end:].strip() else 0


class Forms(NamedTuple):
    """What of a row goes into the store, and the two texts of which MinHash bands are made."""

    lead: int
    """`prompt[lead:]` is what the row asks."""
    prompt_key: int
    answer_key: int
    row_key: int
    """Of the normal forms of prompt and answer."""
    bare_key: int
    template_key: int
    asked: str
    """Bare form of what is asked, or of the answer where there is no prompt (plain text): bands of kind `prompt`."""
    whole: str
    """Bare form of what is asked and the answer: bands of kind `row`. Empty where one of the two is."""


def forms(row: Row) -> Forms:
    cut = lead(row)
    system, asked, answer = normal(row.prompt[:cut]), normal(row.prompt[cut:]), normal(row.answer)
    system_bare, asked_bare, answer_bare = bare(system), bare(asked), bare(answer)
    return Forms(
        lead=cut,
        prompt_key=key(f"{system}\0{asked}"),
        answer_key=key(answer),
        row_key=key(f"{system}\0{asked}\0{answer}"),
        bare_key=key(f"{system_bare}\0{asked_bare}\0{answer_bare}"),
        template_key=key(template(f"{system_bare}\0{asked_bare}\0{answer_bare}")),
        asked=asked_bare or answer_bare,
        whole=f"{asked_bare} {answer_bare}" if asked_bare and answer_bare else "",
    )


class Shingles(NamedTuple):
    """Shingles of one kind of some texts, end to end."""

    kind: Kind
    text_K: NDArray[np.int64]
    """Positions of the texts that have this kind."""
    start_K: NDArray[np.int64]
    """Where the shingles of each begin, and one more for the end."""
    hash_S: Hashes


def shingles(forms: Sequence[str]) -> list[Shingles]:
    """Hashed shingles of bare forms. A text near the bound between two kinds has both; an empty one has none."""
    words = [form.split(" ") if form else [] for form in forms]
    count = np.array([len(w) for w in words], dtype=np.int64)
    unspaced = np.array([_is_unspaced(form) for form in forms], dtype=bool)
    chosen = {
        "characters": (count > 0) & ((count < PAIRS_FROM / _SHORTEST) | unspaced),
        "pairs": (count >= PAIRS_FROM) & (count < TRIPLES_FROM / _SHORTEST) & ~unspaced,
        "triples": (count >= TRIPLES_FROM) & ~unspaced,
    }
    result = []
    for kind in KINDS:
        text_K = np.flatnonzero(chosen[kind])
        if len(text_K) == 0:
            continue
        if kind == "characters":
            start_K, hash_S = _characters([(forms[i], bool(unspaced[i])) for i in text_K.tolist()])
        else:
            start_K, hash_S = _runs([words[i] for i in text_K.tolist()], 2 if kind == "pairs" else 3)
        result.append(Shingles(kind, text_K, start_K, hash_S))
    return result


def similarities(forms: Sequence[str], pair_P2: NDArray[np.int64]) -> NDArray[np.float64]:
    """Exact Jaccard similarity of the shingles of pairs of bare forms, given by their positions.

    Each pair is compared by the kind of its shorter text. Shingles are hashed to 40 bits: within two texts of a hundred
    each, two differ unseen once in 10^8 pairs.
    """
    words = np.array([form.count(" ") + 1 if form else 0 for form in forms], dtype=np.int64)
    unspaced = np.array([_is_unspaced(form) for form in forms], dtype=bool)
    shorter_P = words[pair_P2].min(axis=1)
    kind_P = np.where((shorter_P < PAIRS_FROM) | unspaced[pair_P2].any(axis=1), 0, 1 + (shorter_P >= TRIPLES_FROM))
    result_P = np.zeros(len(pair_P2))
    for of_kind in shingles(forms):
        start, length = np.zeros(len(forms), np.int64), np.zeros(len(forms), np.int64)
        start[of_kind.text_K], length[of_kind.text_K] = of_kind.start_K[:-1], np.diff(of_kind.start_K)
        wanted = np.flatnonzero(kind_P == KINDS.index(of_kind.kind))
        for begin in range(0, len(wanted), _PAIRS_AT_ONCE):
            some = wanted[begin : begin + _PAIRS_AT_ONCE]
            result_P[some] = _jaccard(of_kind.hash_S, start[pair_P2[some]], length[pair_P2[some]])
    return result_P


_PAIRS_AT_ONCE = 20_000


def _jaccard(hash_S: Hashes, start_P2: NDArray[np.int64], length_P2: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sets of both sides, each value marked with its pair and sorted: those that then stand twice are in both."""
    pairs = len(start_P2)
    sizes, both = [], []
    for side in (0, 1):
        of_S, at_S = spread(start_P2[:, side], length_P2[:, side])
        marked = np.sort((of_S.astype(np.uint64) << np.uint64(40)) | (hash_S[at_S] >> np.uint64(24)))
        marked = marked[np.concatenate(([True], marked[1:] != marked[:-1]))[: len(marked)]]
        sizes.append(np.bincount((marked >> np.uint64(40)).astype(np.int64), minlength=pairs))
        both.append(marked)
    together = np.sort(np.concatenate(both))
    shared = together[1:][together[1:] == together[:-1]]
    common = np.bincount((shared >> np.uint64(40)).astype(np.int64), minlength=pairs)
    union = sizes[0] + sizes[1] - common
    # A text without shingles of this kind is unlike any other.
    return np.where(length_P2.min(axis=1) > 0, common / np.maximum(union, 1), 0.0)


def spread(start_N: NDArray[np.int64], length_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions of stretches end to end, and the stretch that each belongs to (first)."""
    of_S = np.repeat(np.arange(len(length_N)), length_N)
    before = np.cumsum(length_N) - length_N
    return of_S, np.arange(len(of_S)) + (start_N - before)[of_S]


def _characters(texts: Sequence[tuple[str, bool]]) -> tuple[NDArray[np.int64], Hashes]:
    # Padded, so that the shortest text is a shingle too; in scripts without spaces a run of 3 and a constant.
    padded = [(form.replace(" ", "") if dense else form).ljust(4, "\0") for form, dense in texts]
    width = np.array([3 if dense else 4 for _, dense in texts], dtype=np.int64)
    length = np.array([len(form) for form in padded], dtype=np.int64)
    code = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = length - width + 1
    of_S, at_S = spread(np.cumsum(length) - length, count)
    fourth = np.where(width[of_S] == 4, code[np.minimum(at_S + 3, len(code) - 1)], 0)
    hash_S = code[at_S] * _ODD[0] + code[at_S + 1] * _ODD[1] + code[at_S + 2] * _ODD[2] + fourth * _ODD[3]
    return np.concatenate(([0], np.cumsum(count))), mix(hash_S)


def _runs(texts: Sequence[Sequence[str]], width: int) -> tuple[NDArray[np.int64], Hashes]:
    length = np.array([len(words) for words in texts], dtype=np.int64)
    word_W = np.fromiter((_WORDS[word] for words in texts for word in words), np.uint64, int(length.sum()))
    count = np.maximum(length - width + 1, 0)
    _, at_S = spread(np.cumsum(length) - length, count)
    hash_S = np.zeros(len(at_S), np.uint64)
    for i in range(width):
        hash_S = hash_S * _ODD[0] + word_W[at_S + i]
    return np.concatenate(([0], np.cumsum(count))), mix(hash_S)


def runs(forms: Sequence[str], width: int) -> tuple[NDArray[np.int64], Hashes]:
    """Hashes of all runs of `width` words of texts, end to end, and where those of each begin, and the last end."""
    return _runs([form.split(" ") for form in forms], width)


class _Words(dict[str, int]):
    """Hashes of words, kept, because a word is seen often; forgotten all at once where there are too many."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 200_000:
            self.clear()
        self[word] = hashed = key(word)
        return hashed


_WORDS = _Words()
_ODD = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93],
    dtype=np.uint64,
)
"""Odd 64-bit numbers without pattern."""


def mix(hash_N: Hashes) -> Hashes:
    """Spreads every bit over all (the end of SplitMix64)."""
    hash_N = (hash_N ^ (hash_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hash_N = (hash_N ^ (hash_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hash_N ^ (hash_N >> np.uint64(31))


def _is_unspaced(form: str) -> bool:
    """Whether most of it is in a script that puts no spaces between words."""
    return not form.isascii() and 2 * sum(map(len, _UNSPACED.findall(form))) > len(form)


_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def _punctuation() -> re.Pattern[str]:
    """Runs of punctuation, but not the marks within or before a number. One character class stands in front, so that
    the search skips to it. Ancient scripts beyond U+FFFF have punctuation of their own, which stays."""
    kinds = ("Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc")
    marks = "".join(c for c in map(chr, range(0x10000)) if unicodedata.category(c) in kinds and c not in "%‰")
    mark = f"[{re.escape(marks)}|`^~<>=]"
    return re.compile(rf"{mark}(?:{mark}*(?!\d)|(?<!-)(?<!\d.))", re.DOTALL)


_PUNCTUATION = _punctuation()
_APOSTROPHES = re.compile("['’ʼ](?<=[^\\W\\d].)(?=[^\\W\\d])")
_DIGITS = re.compile(r"\d+")
