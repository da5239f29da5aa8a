"""What is said alike wherever a run is described: how it ended, how to load its model, what its figures leave out."""

from __future__ import annotations

from typing import Any

from luthier.masking import mask
from luthier.numbers import duration, memory, number, short, signed
from luthier.runs.record import RunRecord

JSON = dict[str, Any]
OBJECTIVES = {
    "supervised": "the assistant's turns of conversations",
    "text": "every token of plain text",
    "classify": "one label for each text",
    "classify_multi": "any number of labels for each text",
    "regress": "a number for each text",
}
CLOSER = ("wrote answers closer to the expected ones", "wrote answers further from the expected ones")
CHANGES = {
    "rouge_l": CLOSER,
    "chrf": CLOSER,
    "token_f1": CLOSER,
    "exact_match": ("gave exactly the expected answer more often", "gave exactly the expected answer less often"),
    "accuracy": ("picked the right label more often", "picked the right label less often"),
    "macro_f1": ("told the labels apart better", "told the labels apart less well"),
    "micro_f1": ("found the right labels more reliably", "found the right labels less reliably"),
    "squared_error": ("came closer to the right numbers", "stayed further from the right numbers"),
    "absolute_error": ("came closer to the right numbers", "stayed further from the right numbers"),
    "loss": ("was less surprised by the right text", "was more surprised by the right text"),
}
"""What a gain and a loss of each metric mean, said of the tuned model."""


def headline(record: RunRecord) -> str:
    """The run in a sentence for people who know no statistics: what the verdict means, or why there is none."""
    if record.evaluation:
        return _verdict(record.evaluation)
    finished, stopped, swept = record.last("finished"), standing_stop(record), record.last("swept")
    if swept and swept["chosen"] is None:
        return selection(swept)
    if finished:
        trained = f"Training finished after {number(finished['step'])} steps"
        if not part(record.recipe, "evaluation").get("enabled", True):
            return f"{trained}. The comparison with the base was switched off, so nothing shows whether it helped."
        return f"{trained}. The tuned model has not been compared with its base model yet."
    if stopped:
        return f"This run stopped at step {number(stopped['step'])}, and was not compared with its base model."
    done, planned = len(record.all("step")), (record.last("started") or {}).get("steps")
    steps = f"{number(done)} of {number(planned)} steps" if planned else f"{number(done)} steps"
    return f"This run has not finished: {steps} are done, and nothing has been compared yet."


def _verdict(evaluation: JSON) -> str:
    if evaluation["verdict"] is None:
        return "The tuned model was measured alone, so nothing here shows whether tuning helped."
    word, rows = evaluation["verdict"]["word"], number(evaluation["items"])
    main = next(metric for metric in evaluation["metrics"] if metric["name"] == evaluation["primary"])
    gained, lost = CHANGES.get(main["name"], (f"was better by {main['label']}", f"was worse by {main['label']}"))
    if word.startswith("better"):
        return f"Tuning helped: on {rows} rows it had never seen, the tuned model {gained} than the base model."
    if word.startswith("worse"):
        return f"Tuning did harm: on {rows} rows it had never seen, the tuned model {lost} than the base model."
    if word.startswith("not worse"):
        return f"Tuning did no noticeable harm on {rows} unseen rows, and a gain could not be shown."
    if word.startswith("identical"):
        return f"Tuning changed nothing that was measured: both models score the same on all {rows} unseen rows."
    return f"It is not clear whether tuning helped: {rows} unseen rows are too few to tell."


def selection(swept: JSON) -> str:
    """How the arm of a sweep was chosen, and what that means for the figures; `swept` is the event of the choice."""
    count = number(len(swept["arms"]))
    if swept["chosen"] is None:
        return (
            f"This is a sweep of {count} arms whose validation rows differ, so none was chosen: each is a run by "
            "itself under arms/, compared with the base on its own rows."
        )
    return (
        f"A sweep chose this arm out of {count} by its loss on the validation rows. That loss is therefore a little "
        "too good to be true; the test rows took no part in the choice, so the comparison with the base is as honest "
        "as that of a single run."
    )


def expectation(finished: JSON) -> list[tuple[str, str]]:
    """(what, foretold and fact) of a finished run: its peak memory, and the time of its training steps."""
    told = finished.get("expected")
    if not told:
        return []
    same = told["steps"] == finished["step"]
    steps, done = ("", "") if same else (f" for {number(told['steps'])} steps", f" for {number(finished['step'])}")
    basis = "" if told["by"] == "probe" else ", from its first steps"
    change = f" ({_change(told['training_seconds'], told['took'])})" if same else ""
    foretold, took = duration(told["training_seconds"]), duration(told["took"])
    within = f" (within {100 * told['spread']:.0f} %)" if told.get("spread") else ""
    size, fact = told["memory_bytes"], finished["memory_bytes"]
    return [
        ("memory", f"{memory(size)} foretold, {memory(fact)} in fact ({_change(size, fact)})"),
        ("training", f"{foretold}{steps} foretold{basis}{within}, {took}{done} in fact{change}"),
    ]


def _change(expected: float, fact: float) -> str:
    percent = round(100 * (fact / expected - 1)) if expected else 0
    return f"{signed(percent, 0)} %" if percent else "0 %"


def standing_stop(record: RunRecord) -> JSON | None:
    """The last stop, unless the run went on after it."""
    for event in reversed(record.events):
        if event["event"] == "stopped":
            return event
        if event["event"] in ("resumed", "started"):
            return None
    return None


def part(tree: JSON, name: str) -> JSON:
    """A section of a recipe or manifest; empty when it is missing or null."""
    return tree.get(name) or {}


def adapter(record: RunRecord) -> str:
    """Which weights were trained, in words."""
    chosen = part(record.recipe, "adapter")
    if chosen.get("kind") == "lora":
        targets = chosen.get("targets", "all-linear")
        where = "all linear layers" if targets == "all-linear" else ", ".join(targets)
        rslora = ", rank-stabilised" if chosen.get("rslora") else ""
        begun = "" if chosen.get("init", "default") == "default" else f", begun by {chosen['init']}"
        plus = f", B at {short(chosen['plus'])} times the rate" if chosen.get("plus") else ""
        name = "DoRA" if chosen.get("dora") else "LoRA"
        size = f"rank {chosen.get('rank')}, alpha {short(chosen.get('alpha', 0))}"
        return f"{name} of {size}{rslora}{begun}{plus}, on {where}{_stored(record)}"
    if chosen.get("kind") == "peft":
        return f"{chosen.get('method')} by PEFT{_stored(record)}"
    frozen = chosen.get("freeze_layers", 0)
    return f"all weights, except the embeddings and the lowest {frozen} layers" if frozen else "all weights"


def _stored(record: RunRecord) -> str:
    quantise = part(record.recipe, "model").get("quantise", "none")
    return "" if quantise == "none" else f"; the base was in {quantise}, and the adapter belongs to that"


def is_adapter(record: RunRecord) -> bool:
    """Whether what was trained is saved beside the base and not as a whole model."""
    return part(record.recipe, "adapter").get("kind") in ("lora", "peft")


def gate_sentence(record: RunRecord) -> str:
    """Whether the data gate looked at the rows, and what may be broken: for cards and reports."""
    if record.gate is None:
        reason = part(part(record.recipe, "data"), "gate").get("off")
        return f"The data gate did not look at the rows: {mask(reason)}" if reason else "No data gate is recorded."
    found = [finding["rule"] for finding in record.gate["findings"] if finding["severity"] != "info"]
    seen = f"and saw {', '.join(found)}" if found else "and saw nothing that is more than a note"
    waived = "; ".join(f"{one['rule']}: {mask(one['reason'])}" for one in record.gate["waivers"])
    sentence = (
        f"The data gate looked at {number(record.gate['rows'])} rows under policy {record.gate['policy']} {seen}."
    )
    return sentence + (f" Waived: {waived}." if waived else "")


def is_head(record: RunRecord) -> bool:
    """Whether the model answers with labels or a number, and writes no text."""
    return part(record.recipe, "objective").get("kind") in ("classify", "classify_multi", "regress")


def loading(record: RunRecord, *, base: str, model: str, merged: str) -> str:
    """Python that loads the tuned model: `base` with the adapter in `model`, or the export in `merged`.

    Adapters of a GGUF file, a wheel or a quantised base, and adapters with a head of their own, are loaded merged.
    """
    source = part(record.manifest, "base")
    stored = part(record.recipe, "model").get("quantise", "none")
    direct = source.get("kind") in ("hub", "folder") and not is_head(record) and stored == "none"
    auto = "AutoModelForSequenceClassification" if is_head(record) else "AutoModelForCausalLM"
    folder = model if direct or not is_adapter(record) else merged
    lines = [f"from transformers import {auto}, AutoTokenizer", "", f"folder = {folder!r}"]
    if is_adapter(record) and direct:
        pinned = f", revision={source['revision']!r}" if source.get("kind") == "hub" and source.get("revision") else ""
        lines.insert(0, "from peft import PeftModel")
        lines += [f"base = {auto}.from_pretrained({base!r}{pinned})", "model = PeftModel.from_pretrained(base, folder)"]
    else:
        lines.append(f"model = {auto}.from_pretrained(folder)")
    lines += ["tokenizer = AutoTokenizer.from_pretrained(folder)", ""]
    objective = str(part(record.recipe, "objective").get("kind"))
    if is_head(record):
        lines += ['logits = model(**tokenizer("the text", return_tensors="pt")).logits[0]']
        lines += {
            "classify": ["print(model.config.id2label[logits.argmax().item()])"],
            "classify_multi": ["print([model.config.id2label[i] for i, x in enumerate(logits) if x > 0])"],
            "regress": ["print(logits.item())"],
        }[objective]
    else:
        lines += (
            ['inputs = tokenizer("The text begins", return_tensors="pt")']
            if objective == "text"
            else [
                'messages = [{"role": "user", "content": "your question"}]',
                "inputs = tokenizer.apply_chat_template(",
                '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
                ")",
            ]
        )
        lines += [
            "output = model.generate(**inputs, max_new_tokens=256, do_sample=False)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    return "\n".join(lines)


def limits(record: RunRecord) -> list[str]:
    """What the figures do not show, in plain words."""
    evaluation = record.evaluation
    if evaluation is None:
        return [
            "Nothing was compared: a falling loss shows that training rows were learnt, not that answers improved.",
            *_always(record),
        ]
    items, groups = evaluation["items"], evaluation["clusters"]
    grouped = f" in {number(groups)} independent groups" if groups not in (None, items) else ""
    said = [
        f"The figures rest on {number(items)} held-back rows{grouped}. They speak for rows like these only.",
        "One run with one seed: another seed gives somewhat other figures, which the intervals do not include.",
    ]
    if not part(record.recipe, "data").get("test"):
        said.append(
            "The test rows were held back from the same files as the training rows, so use in practice may differ more."
        )
    if evaluation["task"] == "answers":
        said.append(
            "Scores of answers measure how close the wording is to the reference. An answer can be right in other "
            "words, or close and wrong: read the examples."
        )
        said.append(
            "Base and tuned were given the same prompts. A better prompt might also have helped the base model."
        )
    return said + _always(record)


def _always(record: RunRecord) -> list[str]:
    if is_head(record):
        return ["Not tested: fairness between groups of people, texts unlike the training rows, and energy use."]
    return ["Not tested: safety, bias, facts, what the model may have forgotten outside this task, and energy use."]
