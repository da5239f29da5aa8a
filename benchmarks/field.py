"""Who runs which workload, with which settings. A peer's best setting is the bar, so several are tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Contender:
    """A program and its settings."""

    name: str
    script: str
    """Module in `benchmarks.contenders`."""
    environment: Literal["luthier", "peers"]
    options: dict[str, Any] = field(default_factory=dict)
    same_steps: bool = True
    """Whether each step has the same examples as everyone's. Where not, losses are compared over the whole run."""


def _hand(batch: str, head: str) -> Contender:
    return Contender(
        f"transformers + PEFT, {batch}, {_HEADS[head]}",
        "hand",
        "peers",
        {"batch": batch, "head": head},
        same_steps=batch != "across",
    )


def _exact(workload: str) -> Contender:
    """What the others' losses and answers are compared with: transformers in float32, once."""
    if workload == "generate":
        return Contender(
            "transformers generate in float32 (reference)",
            "transformers_generate",
            "peers",
            {"batch": 8, "sorted": True, "fp32": True},
        )
    if workload == "banking77":
        return Contender(
            "transformers Trainer in float32 (reference)", "trainer", "peers", {"batch": "padded", "bf16": False}
        )
    return Contender(
        "transformers + PEFT in float32 (reference)", "hand", "peers", {"batch": "in-step", "head": "cut", "fp32": True}
    )


def _trl(batch: str, words: str, **more: Any) -> Contender:
    return Contender(
        f"TRL SFTTrainer, {words}", "trainer", "peers", {"batch": batch, **more}, same_steps=batch == "padded"
    )


def _trainer(batch: str, bf16: bool) -> Contender:
    words = {"padded": "padded", "across": "lengths grouped"}[batch]
    return Contender(
        f"transformers Trainer, {words}, {'bf16 autocast' if bf16 else 'fp32'}",
        "trainer",
        "peers",
        {"batch": batch, "bf16": bf16},
        same_steps=batch == "padded",
    )


def _generate(batch: int, by_length: bool) -> Contender:
    order = "sorted by length" if by_length else "in order"
    return Contender(
        f"transformers generate, batches of {batch}, {order}",
        "transformers_generate",
        "peers",
        {"batch": batch, "sorted": by_length},
    )


_HEADS = {"full": "every position's logits", "cut": "supervised logits", "chunked": "linear_cross_entropy"}
LUTHIER = Contender("Luthier", "luthier_train", "luthier")
PACKED = 2048
"""Tokens of a row that TRL packs: about eight dialogues, as many as in everyone's step."""

FIELD: dict[str, list[Contender]] = {
    "mts": [
        LUTHIER,
        _hand("padded", "cut"),
        _hand("in-step", "full"),
        _hand("in-step", "cut"),
        _hand("across", "cut"),
        _hand("flattened", "full"),
        _hand("flattened", "cut"),
        _trl("padded", "padded"),
        _trl("across", "lengths grouped"),
        _trl("packed", f"packing=True, {PACKED} tokens", length=PACKED),
    ],
    "gsm8k": [
        LUTHIER,
        _hand("padded", "cut"),
        _hand("in-step", "cut"),
        _hand("across", "cut"),
        _hand("flattened", "cut"),
        _trl("padded", "padded"),
        _trl("packed", f"packing=True, {PACKED} tokens", length=PACKED),
    ],
    "banking77": [
        LUTHIER,
        Contender("Luthier, bf16 with float32 weights", "luthier_train", "luthier", {"precision": "bf16"}),
        _trainer("padded", False),
        _trainer("across", False),
        _trainer("padded", True),
        _trainer("across", True),
    ],
    "prefix": [
        Contender("Luthier, every row whole", "luthier_train", "luthier"),
        Contender("Luthier, prompt shared", "luthier_train", "luthier", {"share": True}),
        _hand("padded", "cut"),
        _hand("flattened", "cut"),
    ],
    "generate": [
        Contender("Luthier's sampler, 16 rows", "luthier_generate", "luthier", {"batch": 16}),
        _generate(8, False),
        _generate(8, True),
        _generate(32, True),
    ],
}
"""Workload -> contenders."""

EXACT = {name: _exact(name) for name in FIELD}
"""Workload -> whose losses or answers everyone's are compared with. It is run once, and is no contender."""

ON_A_GPU: dict[str, list[Contender]] = {
    "mts": [_trl("packed", f"packing=True, {PACKED} tokens, Liger", length=PACKED, liger=True)],
    "gsm8k": [_trl("packed", f"packing=True, {PACKED} tokens, Liger", length=PACKED, liger=True)],
}
"""Workload -> contenders that need a GPU, with `pip install liger-kernel` beside the peers."""


def ran(name: str, runs: dict[str, Any]) -> list[Contender]:
    """The contenders of a workload that `runs` holds."""
    return [c for c in (*FIELD[name], *ON_A_GPU.get(name, [])) if c.name in runs]


NOT_RUN = {
    "every position's logits in padded batches": "cut to the supervised ones they are faster, and run",
    "F.linear_cross_entropy": "its loss in bf16 is 0.08 nats from float32's, so that it does not do the same work",
    "LLaMA-Factory 0.9.5": "it needs transformers 5.6 and TRL 0.24, and so an environment of its own",
    "ms-swift 4.6": "it needs transformers 5.19 and TRL 0.29, as above",
    "Unsloth 2026.10": "it needs transformers 5.17 and TRL 1.15, as above",
    "torch.compile": "minutes of compilation, and again for every length; no contender is compiled",
}
"""What a reader may miss -> why it is not there."""


def luthiers(contender: Contender) -> bool:
    return contender.environment == "luthier"
