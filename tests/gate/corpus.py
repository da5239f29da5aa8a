"""Rows for the gate's tests: invented support chats without a fault, and files of them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gate import chats
from luthier.gate import reading, store, summary
from luthier.gate.audit import SET_RULES, Audit, audit
from luthier.gate.policy import Policy, load_policy

Chat = dict[str, Any]


def chat(asked: str, answer: str, **columns: Any) -> Chat:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], **columns}


def clean(count: int, *, seed: int = 20) -> list[Chat]:
    """Chats that differ, and that hold nothing private."""
    return [{"messages": row["messages"]} for row in chats(count, seed=seed, faults=False)]


def write(path: Path, rows: Iterable[Chat]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def look(folder: Path, rows: Sequence[Chat], *, against: Sequence[Chat] = (), policy: Policy | None = None) -> Audit:
    """Audits rows within this process."""
    folder.mkdir(exist_ok=True)
    test = [write(folder / "test.jsonl", against)] if against else []
    train = write(folder / "train.jsonl", rows)
    return audit([train], policy or Policy(), folder / "audit", against=test, workers=0)


def everything(folder: Path, **how: Any) -> list[Any]:
    """What the store holds of 280 chats with faults, and all that is found in them.

    Args:
        how: arguments of `write_store`.
    """
    policy = load_policy("support")
    file, test = write(folder / "train.jsonl", chats(250)), write(folder / "test.jsonl", chats(30, seed=3))
    found, _ = reading.sources({"train": [file], "test": [test]})
    with store.write_store(reading.rows(found, policy), folder / "store", policy, **how) as made:
        for topic in SET_RULES.values():
            made.add(topic(made, policy))
        summary.place_hits(made, found)
        texts = made.db.execute("SELECT * FROM rows ORDER BY row").fetchall()
        return [texts, made.db.execute("SELECT * FROM placed ORDER BY ALL").fetchall()]
