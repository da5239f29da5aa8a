"""transformers' `generate`, greedy, in batches padded on the left.

options.batch   rows in a batch
options.sorted  whether prompts are sorted by length first
options.fp32    whether to compute in float32
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.contenders.common import Job, peak_bytes, read_job, say


def answer(model: Any, prompts: list[list[int]], job: Job) -> list[list[int]]:
    """New tokens after each prompt, up to and with the first stop token."""
    longest = max(len(prompt) for prompt in prompts)
    fill = [longest - len(prompt) for prompt in prompts]
    ids = [[job.stop[0]] * n + prompt for prompt, n in zip(prompts, fill, strict=True)]
    mask = [[0] * n + [1] * len(prompt) for prompt, n in zip(prompts, fill, strict=True)]
    out = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=job.new_tokens,
        do_sample=False,
        eos_token_id=job.stop,
        pad_token_id=job.stop[0],
    )
    return [cut(row, job.stop) for row in out[:, longest:].tolist()]


def cut(tokens: list[int], stop: list[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]


def main() -> None:
    from transformers import AutoModelForCausalLM

    job = read_job()
    prompts = [row.tokens for row in job.load_rows()]
    dtype = torch.float32 if job.options.get("fp32") else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, local_files_only=True)
    model = model.to(job.device).eval()
    size = job.options["batch"]
    warm, timed = job.steps
    answer(model, [prompts[i] for i in warm], job)
    loaded = peak_bytes()
    began = time.perf_counter()
    order = sorted(timed, key=lambda i: -len(prompts[i])) if job.options["sorted"] else timed
    completions: dict[int, list[int]] = {}
    for at in range(0, len(order), size):
        group = order[at : at + size]
        completions.update(zip(group, answer(model, [prompts[i] for i in group], job), strict=True))
    seconds = time.perf_counter() - began
    say(loaded_bytes=loaded, seconds=[seconds], completions=[completions[i] for i in timed])


if __name__ == "__main__":
    main()
