"""Luthier's own sampler, greedy, on a list of prompts.

options.batch  rows decoded together
"""

from __future__ import annotations

import time

from benchmarks.contenders.common import peak_bytes, read_job, say


def main() -> None:
    from luthier.models.sources import resolve
    from luthier.recipe.load import build
    from luthier.sampling.local import Decoding, generate
    from luthier.workflow.build import open_policy

    job = read_job()
    prompts = [row.tokens for row in job.load_rows()]
    recipe = build(
        {
            "model": {"source": job.model, "precision": "bf16"},
            "data": {"train": [job.rows]},
            "objective": {"kind": "supervised"},
            "training": {"threads": job.threads, "device": job.device},
        },
        where="benchmark",
    )
    policy, _ = open_policy(recipe, resolve(job.model))
    decoding = Decoding(max_new_tokens=job.new_tokens, stop=frozenset(job.stop))
    warm, timed = ([prompts[i] for i in step] for step in job.steps)
    list(generate(policy, warm, decoding, batch=job.options["batch"]))
    loaded = peak_bytes()
    began = time.perf_counter()
    done = list(generate(policy, timed, decoding, batch=job.options["batch"]))
    seconds = time.perf_counter() - began
    completions = [list(c.tokens) for c in sorted(done, key=lambda c: c.index)]
    say(loaded_bytes=loaded, seconds=[seconds], completions=completions)


if __name__ == "__main__":
    main()
