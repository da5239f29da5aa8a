"""A hand-written loop over transformers and PEFT: what a careful engineer writes without a framework.

options.batch  padded      the step's examples in one padded batch
               in-step     cut into microbatches of two by length, so that less is padded and the step stays the same
               across      padded, with lengths grouped over the whole run
               flattened   one row without padding, positions restarting, no mask
options.head   full        transformers' own loss over every position
               cut         the head at supervised positions only
               chunked     the same through F.linear_cross_entropy, which keeps no logits
options.fp32               the same bf16 weights, computed in float32: the reference for everyone's losses
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders.common import Job, Row, arranged, finished, peak_bytes, read_job, say

IGNORED = -100
PAIR = 2


def load(job: Job) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
    )
    if job.options.get("fp32"):
        model.float()
    model.config.use_cache = False
    model.to(job.device)
    # PEFT keeps the adapter in float32 above a bf16 base.
    return PeftModel.from_pretrained(model, job.adapter, is_trainable=True).train()


def targets(row: Row) -> list[int]:
    """Labels as transformers wants them: not shifted; a document's first token is never one."""
    marked = [t if w else IGNORED for t, w in zip(row.tokens, row.weights, strict=True)]
    return [IGNORED, *marked[1:]]


def padded(rows: list[Row]) -> dict[str, Tensor]:
    longest = max(len(row.tokens) for row in rows)
    fill = [longest - len(row.tokens) for row in rows]
    return {
        "input_ids": torch.tensor([row.tokens + [0] * n for row, n in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(row.tokens) + [0] * n for row, n in zip(rows, fill, strict=True)]),
        "labels": torch.tensor([targets(row) + [IGNORED] * n for row, n in zip(rows, fill, strict=True)]),
    }


def flattened(rows: list[Row]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.tensor([[t for row in rows for t in row.tokens]]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row.tokens))]]),
        "labels": torch.tensor([[t for row in rows for t in targets(row)]]),
    }


def microbatches(rows: list[Row], batch: str) -> list[dict[str, Tensor]]:
    if batch == "flattened":
        return [flattened(rows)]
    if batch == "in-step":
        order = sorted(rows, key=lambda row: -len(row.tokens))
        return [padded(order[i : i + PAIR]) for i in range(0, len(order), PAIR)]
    return [padded(rows)]


def loss_of(model: Any, batch: dict[str, Tensor], head: str, units: int) -> Tensor:
    """Summed loss over the microbatch divided by the step's supervised tokens."""
    if head == "full":
        whole: Tensor = model(
            **batch, use_cache=False, num_items_in_batch=torch.tensor(units, device=model.device)
        ).loss
        return whole
    labels = batch["labels"][:, 1:]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    inner = model.get_base_model()
    hidden = inner.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    keep = labels != IGNORED
    selected, wanted = hidden[keep], labels[keep]
    if head == "chunked":
        options = torch.nn.LinearCrossEntropyOptions()
        total = F.linear_cross_entropy(selected, inner.lm_head.weight, wanted, reduction="sum", options=options)
    else:
        total = F.cross_entropy(inner.lm_head(selected).float(), wanted, reduction="sum")
    return total / units


def main() -> None:
    job = read_job()
    rows, batch, head = job.load_rows(), job.options["batch"], job.options["head"]
    model = load(job)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.rate, weight_decay=0.0, fused=True)
    loaded = peak_bytes()
    result: dict[str, list[float]] = {"seconds": [], "losses": [], "units": [], "tokens": [], "positions": []}
    for indices in arranged(job.steps, [len(row.tokens) for row in rows], across=batch == "across"):
        began = time.perf_counter()
        chosen = [rows[i] for i in indices]
        parts = microbatches(chosen, batch)
        units = sum(int((part["labels"] != IGNORED).sum()) for part in parts)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in parts:
            on_device = {key: value.to(job.device) for key, value in part.items()}
            loss = loss_of(model, on_device, head, units)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, job.clip)
        optimizer.step()
        finished(job)
        result["seconds"].append(time.perf_counter() - began)
        result["losses"].append(total)
        result["units"].append(units)
        result["tokens"].append(sum(len(row.tokens) for row in chosen))
        result["positions"].append(sum(part["input_ids"].numel() for part in parts))
    say(loaded_bytes=loaded, **result)


if __name__ == "__main__":
    main()
