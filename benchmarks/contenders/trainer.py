"""The peers' own trainers, given what makes them fast: TRL's SFTTrainer for LoRA, transformers' Trainer for labels.

No activation checkpointing, no reporting, no evaluation, constant rate, no decay, the examples of each step as they
come. TRL's trainer computes entropy and the best token as well at every step; it cannot be asked not to.

options.batch  padded   the step's examples in one padded batch
               across   padded, with lengths grouped over the whole run (what `group_by_length` aims at)
               packed   TRL's packing; a step is then a row of `options.length` tokens
options.bf16   float32 weights under bf16 autocast
options.liger  with Liger's kernels, on a GPU
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders.common import Job, Row, arranged, finished, peak_bytes, read_job, say
from benchmarks.contenders.hand import IGNORED, load, padded


def arguments(job: Job, folder: str, *, size: int, steps: int) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": size,
        "num_train_epochs": 1,
        "max_steps": steps,
        "learning_rate": job.rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": job.clip,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": bool(job.options.get("bf16")),
        "use_cpu": job.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def sft(job: Job, rows: list[Row], order: list[list[int]], folder: str) -> Any:
    """TRL's trainer on token ids."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    packed = job.options["batch"] == "packed"
    data = Dataset.from_list(
        [
            {"input_ids": rows[i].tokens, "completion_mask": [int(w > 0) for w in rows[i].weights]}
            for step in order
            for i in step
        ]
    )
    length = job.options["length"] if packed else max(len(row.tokens) for row in rows)
    given = arguments(job, folder, size=1 if packed else len(order[0]), steps=-1 if packed else len(order))
    given["use_liger_kernel"] = bool(job.options.get("liger"))
    settings = SFTConfig(**given, packing=packed, max_length=length, completion_only_loss=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(job.model).parent / "tokenizer")
    return SFTTrainer(model=load(job), args=settings, train_dataset=data, processing_class=tokenizer)


def classifier(job: Job, rows: list[Row], order: list[list[int]], folder: str) -> Any:
    """transformers' trainer on token ids and labels; every weight is trained."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(job.model, dtype=torch.float32, local_files_only=True)

    def collate(batch: list[Row]) -> dict[str, Any]:
        parts = padded(batch)
        return {**parts, "labels": torch.tensor([row.label for row in batch])}

    data = [rows[i] for step in order for i in step]
    settings = TrainingArguments(
        **arguments(job, folder, size=len(order[0]), steps=len(order)), remove_unused_columns=False
    )
    return Trainer(model=model, args=settings, train_dataset=data, data_collator=collate)


def watch(trainer: Any, job: Job) -> list[float]:
    """Seconds from the end of one step to the end of the next, as they come; the first counts from the start of
    training. What the data loader does between steps is a step's own cost."""
    from transformers import TrainerCallback

    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        before = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.before = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            finished(job)
            now = time.perf_counter()
            seconds.append(now - self.before)
            self.before = now

    trainer.add_callback(Clock())
    return seconds


def main() -> None:
    job = read_job()
    rows = job.load_rows()
    order = arranged(job.steps, [len(row.tokens) for row in rows], across=job.options["batch"] == "across")
    with tempfile.TemporaryDirectory() as folder:
        trainer = {"lora": sft, "classify": classifier}[job.kind](job, rows, order, folder)
        seconds = watch(trainer, job)
        loaded = peak_bytes()
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if job.options["batch"] == "packed":
            packed = list(trainer.train_dataset)
            tokens = [len(row["input_ids"]) for row in packed]
            units = [sum(label != IGNORED for label in row["labels"]) for row in packed]
            positions = tokens
        else:
            chosen = [[rows[i] for i in step] for step in order]
            tokens = [sum(len(row.tokens) for row in step) for step in chosen]
            units = [len(step) if job.kind == "classify" else sum(sum(r.weights[1:]) for r in step) for step in chosen]
            positions = [max(len(row.tokens) for row in step) * len(step) for step in chosen]
    say(loaded_bytes=loaded, seconds=seconds, losses=losses, units=units, tokens=tokens, positions=positions)


if __name__ == "__main__":
    main()
