"""The dated page of a benchmark, from its raw figures alone.

    python -m benchmarks.page runs/bench/DATE.json [FOLDER]

Writes FOLDER/DATE-engine-INSTRUCTIONS.md, and its figures into a folder of that name; INSTRUCTIONS are those that the
processor has for products in bf16.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.field import NOT_RUN, Contender, luthiers, ran
from benchmarks.figures import GAP, Spread, agrees, gap, rates, ratios, reference, run_loss, spread
from benchmarks.scaling import exponent

RESULTS = Path(__file__).resolve().parent / "results"


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes the page and its figures; returns the page's path."""
    name = f"{results['date']}-engine-{_instructions(results)}"
    path, figures = folder / f"{name}.md", folder / name
    done = {name: work for name, work in results["workloads"].items() if _leaders(name, work)[0]}
    parts = [
        f"# Engine against peers, {results['date']}",
        _summary(done),
        _machine(results),
        *(_workload(name, work, figures) for name, work in results["workloads"].items()),
    ]
    profile = results.get("profile")
    if profile and profile["result"]:
        parts.append(_profile(profile["result"], results["workloads"]["mts"]))
    if "scaling" in results:
        parts.append(_scaling(results["scaling"], figures))
    parts.append(_method(results["settings"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _instructions(results: Mapping[str, Any]) -> str:
    if results["settings"].get("device") == "cuda":
        return "gpu"
    flags = results["machine"]["flags"]
    return next((flag.replace("_", "-") for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags), "plain")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _leaders(name: str, work: Mapping[str, Any]) -> tuple[Contender | None, Contender | None]:
    """Our fastest and the fastest peer that agrees, by their medians; None where none ran."""
    base = reference(ran(name, work["runs"]), work["runs"], work.get("exact"))
    sides: dict[bool, list[tuple[float, Contender]]] = {True: [], False: []}
    for contender in ran(name, work["runs"]):
        found = rates(work["runs"][contender.name], work["kind"])
        first = next((run["result"] for run in work["runs"][contender.name] if run["result"]), None)
        if found and first and agrees(contender, first, base, work["kind"]):
            sides[luthiers(contender)].append((statistics.median(found), contender))
    best = {ours: max(side, key=lambda pair: pair[0])[1] if side else None for ours, side in sides.items()}
    return best[True], best[False]


def _floor_rate(work: Mapping[str, Any]) -> float | None:
    """Real tokens a second if the matrix work alone ran at the measured GEMM rate."""
    if not work["gemm"]:
        return None
    kind = "fp32" if work["kind"] == "classify" else "bf16"
    return float(statistics.median(g[kind] for g in work["gemm"]) / work["flop"]["floor"])


def _summary(works: Mapping[str, Any]) -> str:
    rows = []
    for name, work in works.items():
        ours, theirs = _leaders(name, work)
        assert ours is not None
        mine = spread(rates(work["runs"][ours.name], work["kind"]))
        bar = _floor_rate(work)
        share = f"{100 * mine.median / bar:.0f} %" if bar else "-"
        if theirs is None:
            rows.append([work["title"], _rate(mine), "none ran", "-", "-", share])
            continue
        other = spread(rates(work["runs"][theirs.name], work["kind"]))
        times = spread(ratios(work["runs"][ours.name], work["runs"][theirs.name], work["kind"]))
        memory = f"{_peak(work, ours):.1f} / {_peak(work, theirs):.1f}"
        rows.append([work["title"], _rate(mine), f"{_rate(other)} ({theirs.name})", _times(times), memory, share])
    head = ["", "Luthier, tokens/s", "fastest peer, tokens/s", "ratio, side by side", "peak GB", "of the GEMM floor"]
    return table(head, rows) + (
        "\n\nMedian, and in brackets the lowest and highest run. Peers were tried with several settings, and the "
        "fastest whose losses agree stands here. For generation, tokens are new ones."
    )


def _machine(results: Mapping[str, Any]) -> str:
    host, settings = results["machine"], results["settings"]
    versions: dict[str, set[str]] = {}
    for name, work in results["workloads"].items():
        for contender in ran(name, work["runs"]):
            side = "Luthier" if luthiers(contender) else "peers"
            for run in work["runs"][contender.name]:
                for package, version in (run["result"] or {"versions": {}})["versions"].items():
                    versions.setdefault(f"{package} ({side})", set()).add(version)
    memory = f"{host['memory_bytes'] / 1e9:.0f} GB" if host["memory_bytes"] else "not known"
    lines = [
        *([f"- Computed on one {host['gpu']}."] if settings.get("device") == "cuda" else []),
        f"- {host['processor']}, {host['cores']} cores, {', '.join(host['flags'])}; {memory}; {host['system']}, "
        f"Python {host['python']}",
        f"- {settings['threads']} threads for everyone; {settings['repeats']} rounds",
        "- " + ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in sorted(versions.items())),
        f"- The whole run took {results['minutes']:.0f} minutes." if "minutes" in results else "- Not finished.",
    ]
    if settings["quick"]:
        lines.insert(0, "- **A quick run to see that everything works: its figures mean nothing.**")
    return "## Machine and settings\n\n" + "\n".join(lines)


def _workload(name: str, work: Mapping[str, Any], figures: Path) -> str:
    facts, kind, field = work["facts"], work["kind"], ran(name, work["runs"])
    base, bar = reference(field, work["runs"], work.get("exact")), _floor_rate(work)
    rows: list[list[object]] = []
    drawn: list[tuple[str, float, float, float, bool]] = []
    for contender in field:
        runs = work["runs"][contender.name]
        found = rates(runs, kind)
        if not found:
            rows.append([contender.name, f"did not run: {runs[0]['error'] if runs else 'no run'}", *[""] * 6])
            continue
        first = next(run["result"] for run in runs if run["result"])
        speed = spread(found)
        drawn.append((contender.name, speed.median, speed.low, speed.high, luthiers(contender)))
        rows.append(
            [
                contender.name,
                _rate(speed),
                speed.runs,
                f"{facts['all_tokens'] / speed.median:.0f}" if kind != "generate" else f"{_seconds(runs):.0f}",
                f"{_peak(work, contender):.1f}",
                f"{100 * speed.median / bar:.0f} %" if bar else "-",
                "-" if kind == "generate" else f"{run_loss(first):.4f}",
                _gap_words(contender, first, base, kind),
            ]
        )
    rows.sort(key=lambda row: str(row[1]).startswith("did"))
    plots.bars(
        figures / f"{name}.svg",
        work["title"],
        drawn,
        floor=bar,
        unit="new tokens/s" if kind == "generate" else "tokens/s",
    )
    head = ["program", "tokens/s", "runs", "s a pass" if kind != "generate" else "s", "peak GB", "of the floor", "loss"]
    return "\n\n".join(
        [
            f"## {work['title']}",
            _facts_words(facts, kind),
            f"![{work['title']}]({figures.name}/{name}.svg)",
            table([*head, "from float32"], rows),
            _disturbance(work),
            *([_losses(field, work)] if kind != "generate" else []),
        ]
    )


def _facts_words(facts: Mapping[str, Any], kind: str) -> str:
    words = (
        f"{facts['examples']} of {facts['all_examples']} examples, {facts['tokens']:,} real tokens, longest "
        f"{facts['longest']:,}. SHA-256 of the token ids: `{facts['sha256']}`."
    )
    if kind == "lora":
        words += f" {100 * facts['supervised']:.0f} % of the tokens are supervised."
    return words


def _gap_words(contender: Contender, first: Mapping[str, Any], base: Mapping[str, Any] | None, kind: str) -> str:
    if base is None:
        return "no peer ran"
    distance = gap(contender, first, base, kind)
    verdict = "" if agrees(contender, first, base, kind) else ", **not the same work**"
    if kind == "generate":
        return f"{100 * (1 - distance):.0f} % of an answer is the same{verdict}"
    return f"{distance:.4f}{'' if contender.same_steps else ' over the run'}{verdict}"


def _losses(field: Sequence[Contender], work: Mapping[str, Any]) -> str:
    """Loss of every step, for contenders whose steps hold the same examples."""
    rows = []
    if (work.get("exact") or {}).get("result"):
        rows.append(["float32, transformers", *(f"{loss:.4f}" for loss in work["exact"]["result"]["losses"][:8])])
    for contender in field:
        first = next((run["result"] for run in work["runs"][contender.name] if run["result"]), None)
        if first and contender.same_steps:
            rows.append([contender.name, *(f"{loss:.4f}" for loss in first["losses"][:8])])
    steps = max((len(row) - 1 for row in rows), default=0)
    note = f"Largest difference allowed from float32: {GAP} nats, over the run where steps hold other examples."
    return "Mean loss of each step, first run:\n\n" + table(["", *map(str, range(1, steps + 1))], rows) + f"\n\n{note}"


def _disturbance(work: Mapping[str, Any]) -> str:
    runs = [run for group in work["runs"].values() for run in group]
    others = [run["others"] for run in runs if run["others"] is not None]
    stolen = [run["stolen"] for run in runs if run["stolen"] is not None]
    if not others:
        return "What other processes used meanwhile is not known on this system."
    return (
        f"Other processes used {statistics.median(others):.2f} cores in the median run and {max(others):.2f} in the "
        f"worst; the hypervisor took {max(stolen):.2f} at most."
    )


def _profile(profile: Mapping[str, Any], work: Mapping[str, Any]) -> str:
    """Where a step goes, and what stands between it and the floor."""
    total = sum(profile["kinds"].values())
    rate = statistics.median(g["bf16"] for g in work["gemm"])
    flop, tokens = work["flop"], profile["tokens"]
    floor_seconds = flop["floor"] * tokens / rate
    rows = [
        [kind, f"{1000 * taken:.0f}", f"{100 * taken / total:.0f} %", f"{100 * taken / floor_seconds:.0f} %"]
        for kind, taken in sorted(profile["kinds"].items(), key=lambda item: -item[1])
        if taken / total >= 0.005
    ]
    parts = [
        [part, f"{flop[part] / 1e6:.0f}", f"{1000 * flop[part] * tokens / rate:.0f}"]
        for part in ("body", "adapter", "head", "attention")
    ]
    top = [[f"`{name}`", f"{1000 * taken:.0f}", count] for name, taken, count in profile["top"]]
    products = profile["kinds"].get("matrix products", 0.0)
    words = (
        f"The floor of this step is {floor_seconds:.2f} s at {rate / 1e9:.0f} GFLOP/s; the profiled step took "
        f"{profile['seconds']:.2f} s. What torch runs as matrix products takes {products:.2f} s, and everything else "
        f"{total - products:.2f} s, of which attention's own products would take "
        f"{flop['attention'] * tokens / rate:.2f} s at GEMM rate. The rest of the gap is memory traffic between "
        "products (norms, activations, rotary positions, casts) and products that run below the rate of the best shape."
    )
    return "\n\n".join(
        [
            f"## Where a step goes\n\nOne step of Luthier on {work['title']}, {tokens:,} tokens.",
            table(["kind of work", "ms", "of the step", "of the floor"], rows),
            table(["needed by", "MFLOP a token", "ms at the GEMM rate"], parts),
            words,
            "Single operators, by their own time:\n\n" + table(["operator", "ms", "calls"], top),
        ]
    )


def _scaling(points: Mapping[str, Sequence[Mapping[str, Any]]], figures: Path) -> str:
    parts = ["## Cost against size"]
    for axis, key, label, other in (
        ("tokens", "tokens", "tokens trained", "documents of 256 tokens, 2,048 tokens a step"),
        ("context", "length", "length of a document", "one step of 8,192 tokens"),
    ):
        rows: list[list[object]] = []
        curves: dict[str, list[tuple[float, float]]] = {}
        for p in points[axis]:
            if p["seconds"]:
                curves.setdefault(p["model"], []).append((p[key], p["seconds"]))
            seconds = f"{p['seconds']:.2f}" if p["seconds"] else f"did not run: {p['error']}"
            rows.append([p["model"], f"{p[key]:,}", seconds, f"{p['peak_bytes'] / 1e9:.2f}"])
        words = []
        for model, curve in curves.items():
            if len(curve) > 2:
                words.append(f"{model}: time grows as {label} to the power {exponent(*zip(*curve, strict=True)):.2f}")
        if curves:
            plots.logarithmic(figures / f"{axis}.svg", label, curves, x_label=label, y_label="seconds")
            parts.append(f"![{label}]({figures.name}/{axis}.svg)")
        parts.append(f"By {label} ({other}):\n\n" + table(["model", label, "seconds", "peak GB"], rows))
        parts.append(". ".join(words) + "." if words else "Too few points for a power.")
    parts.append(
        "Linear is 1. Time over tokens should be, and memory should not grow with them. Over the length of a document "
        "only attention grows, since the tokens of a step stay the same."
    )
    return "\n\n".join(parts)


def _method(settings: Mapping[str, Any]) -> str:
    absent = "\n".join(f"- {name}: {why}" for name, why in NOT_RUN.items())
    return f"""## How it was measured

- Every run is a fresh process; its first step warms up and is not timed. All contenders ran once in turn; then
  Luthier, the fastest agreeing peer and the peers within 15 % of it, {settings["repeats"]} rounds in all, A B C A B C.
  A ratio is of two runs of one round. Contenders with one run show the field, and no ranking among them is meant.
- Token ids, order, starting weights and the starting adapter are the same files for everyone. AdamW, no decay, constant
  rate, gradients clipped at norm 1; bf16 base with an adapter in float32; a classifier in float32 throughout, without
  dropout, since every program draws it from other random numbers. No one checkpoints activations.
- A real token is one of a rendered example; padding is not. Seconds a pass: all the examples at the median rate.
- Peak memory is the operating system's count for the process (wait4). It includes the libraries and the loaded weights.
- The floor is the matrix work of the body, the adapter and the head at supervised positions, at the rate of the best
  GEMM shape measured in the same rounds. It leaves out attention, norms and everything else. For generation it takes
  every answer as long as allowed; decoding a few rows reads all weights for each token, so memory sets the pace there.
  For a classifier it is taken at the float32 rate, also where a program computes in bf16.
- TRL's trainer computes entropy and accuracy at every step and cannot be told not to. `across` and `lengths grouped`
  sort the whole run by length, which is the least padding that grouping can reach.
- `python -m benchmarks.bench` repeats all of it; the raw figures stay in runs/bench.

Not run:

{absent}"""


def _peak(work: Mapping[str, Any], contender: Contender) -> float:
    return float(statistics.median(run["peak_bytes"] for run in work["runs"][contender.name] if run["result"]) / 1e9)


def _seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(statistics.median(sum(run["result"]["seconds"]) for run in runs if run["result"]))


def _rate(value: Spread) -> str:
    return f"{value.median:.0f} ({value.low:.0f}-{value.high:.0f})" if value.runs > 1 else f"{value.median:.0f}"


def _times(value: Spread) -> str:
    return f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})" if value.runs > 1 else f"{value.median:.2f}"


if __name__ == "__main__":
    place = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS
    print(write(json.loads(Path(sys.argv[1]).read_text()), place))
