"""Rows for tests of rules over the whole set, and what a rule says of them by content, whatever their order."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.gate.policy import Policy
from luthier.gate.rows import Field, Hit, Row
from luthier.gate.store import write_store
from luthier.types import Side

POLICY = Policy()
_WORDS = tuple(
    "router invoice kettle parcel charger printer camera mattress scooter tablet refund delivery account screen".split()  # noqa: SIM905
    + "battery handle button cable filter sensor monday friday evening kitchen garden office basement window".split()  # noqa: SIM905
    + "station arrived stopped melted vanished cracked leaked whistles flickers broke froze slowly twice again".split()  # noqa: SIM905
)


def chat(number: int, asked: str, answer: str, *, side: Side = "train", system: str = "", **columns: Any) -> Row:
    turns = [("system", system)] if system else []
    fields = tuple(
        Field(f"messages[{i}].content", role, text)
        for i, (role, text) in enumerate([*turns, ("user", asked), ("assistant", answer)])
    )
    prompt = "\n".join(field.text for field in fields[:-1])
    return Row(f"c:{number}", f"{asked}|{answer}", "c.jsonl", number, side, fields, prompt, answer, columns=columns)


def labelled(number: int, text: str, label: str, *, side: Side = "train", **columns: Any) -> Row:
    fields = (Field("text", "text", text),)
    return Row(f"c:{number}", f"{text}|{label}", "c.csv", number, side, fields, text, "", (label,), columns=columns)


def valued(number: int, text: str, value: float) -> Row:
    return Row(f"c:{number}", text, "c.csv", number, "train", (Field("text", "text", text),), text, "", (), value)


def sentence(draw: Any, words: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(words))


def hits(
    folder: Path,
    rows: Sequence[Row],
    look: Callable[..., Iterator[Hit]],
    *,
    policy: Policy = POLICY,
    chunk_rows: int = 4000,
    **given: Any,
) -> list[Hit]:
    with write_store(rows, folder / "store", policy, workers=0, chunk_rows=chunk_rows) as store:
        return list(look(store, policy, **given))


def rows_of(found: Sequence[Hit], rule: str) -> set[int]:
    return {int(hit.row.split(":")[1]) for hit in found if hit.rule == rule}
