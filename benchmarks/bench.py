"""Peers and Luthier in turn on this machine: same weights, same token ids, same examples in the same order.

    python -m benchmarks.bench [--only mts,gsm8k] [--repeats 5] [--quick] [--full] [--data FOLDER]

Every run is a fresh process whose first step is not timed. All contenders run once; then Luthier, the fastest peer
whose losses agree, and the peers within 15 % of it run again in turn, so that each ratio comes from runs that stood
beside each other. What is measured goes into runs/bench/DATE.json after every workload, and from there onto a page
under benchmarks/results (`python -m benchmarks.page FILE` writes it anew). Workloads that were measured earlier on the
same day with the same settings stay in it, so that --only can take them one by one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import floor, jobs, machine, page, profile_step, scaling
from benchmarks.contenders.common import Job
from benchmarks.field import EXACT, FIELD, ON_A_GPU, Contender, luthiers
from benchmarks.figures import agrees, rate, reference
from benchmarks.runner import ROOT, run_contender, run_module

QUIET_CORES = 0.15
"""More than this in use by others, and the machine is not quiet."""
EXTRAS = ("profile", "scaling")
NEAR = 1.15
"""Peers within this factor of the fastest run in every round."""


def main() -> None:
    arguments = _arguments()
    _refuse_busy(arguments.busy_ok)
    pythons = {"luthier": Path(sys.executable), "peers": arguments.peers.absolute()}
    if not pythons["peers"].exists():
        sys.exit(f"There is no {pythons['peers']}.\n  do: make bench, or python -m venv and benchmarks/peers.txt")
    began = time.perf_counter()
    date = datetime.date.today().isoformat()
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / f"{date}{'-quick' if arguments.quick else ''}.json"
    results = _results(raw, date, arguments)

    def ready(name: str) -> Job:
        # In a process of its own: the peak of a child, as the system counts it, begins at the size of its parent.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(
                jobs.make_ready,
                name,
                arguments.data,
                folder / "work",
                threads=arguments.threads,
                full=arguments.full,
                quick=arguments.quick,
                device=arguments.device,
            ).result()

    for name in arguments.only:
        job = ready(name)
        facts = jobs.facts(job)
        _say(f"{name}: {facts['examples']} examples, {facts['tokens']:,} tokens, sha256 {facts['sha256']}")
        results["workloads"][name] = {"title": jobs.WORKLOADS[name].title, "kind": job.kind, "facts": facts}
        results["workloads"][name] |= {"flop": floor.report(job, facts), **_rounds(name, job, pythons, arguments)}
        raw.write_text(json.dumps(results))
    if "profile" in arguments.extras:
        results["profile"] = profile_step.measure(ready("mts"), folder)
    if "scaling" in arguments.extras:
        results["scaling"] = scaling.measure(folder, threads=arguments.threads, quick=arguments.quick)
    results["minutes"] = results.get("minutes", 0.0) + (time.perf_counter() - began) / 60
    raw.write_text(json.dumps(results))
    place = folder if arguments.quick else arguments.results
    _say(f"{page.write(results, place)} written after {results['minutes']:.0f} minutes in all")


def _results(raw: Path, date: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured today already, where machine and settings are the same, or a new start."""
    settings = {name: getattr(arguments, name) for name in ("threads", "device", "repeats", "quick", "full")}
    fresh = {"date": date, "machine": machine.describe(), "settings": settings, "workloads": {}}
    if raw.exists():
        earlier: dict[str, Any] = json.loads(raw.read_text())
        if all(earlier[key] == fresh[key] for key in ("machine", "settings")):
            return earlier
    return fresh


def _rounds(name: str, job: Job, pythons: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the field of a workload; returns the runs by contender and the GEMM rates of each round."""
    field = [*FIELD[name], *(ON_A_GPU.get(name, []) if job.device == "cuda" else [])]
    runs, gemm = {c.name: [] for c in field}, []  # type: ignore[var-annotated]
    inside = field
    exact = run_contender(EXACT[name], job, pythons=pythons, folder=arguments.out)
    for turn in range(arguments.repeats):
        gemm.append(run_module(pythons["luthier"], "benchmarks.floor", [str(job.threads)], threads=job.threads))
        for contender in inside:
            run = run_contender(contender, job, pythons=pythons, folder=arguments.out)
            runs[contender.name].append(run)
            _tell(name, turn, contender, run, job.kind)
        if turn == 0:
            inside = _finalists(field, runs, exact, job.kind)
    return {"runs": runs, "exact": exact, "gemm": [g["result"] for g in gemm if g["result"]]}


def _finalists(
    field: list[Contender], runs: dict[str, list[dict[str, Any]]], exact: dict[str, Any] | None, kind: str
) -> list[Contender]:
    """Luthier, and the peers that agree and are near the fastest of them."""
    base = reference(field, runs, exact)
    rates = {
        c.name: rate(runs[c.name][0]["result"], kind)
        for c in field
        if not luthiers(c) and runs[c.name][0]["result"] and agrees(c, runs[c.name][0]["result"], base, kind)
    }
    best = max(rates.values(), default=0.0)
    return [
        c
        for c in field
        if runs[c.name][0]["result"] and (luthiers(c) or (c.name in rates and rates[c.name] * NEAR >= best))
    ]


def _tell(name: str, turn: int, contender: Contender, run: dict[str, Any], kind: str) -> None:
    if run["result"] is None:
        _say(f"  {turn + 1} {contender.name}: failed: {run['error']}")
        return
    unit = "new tok/s" if kind == "generate" else "tok/s"
    others = "" if run["others"] is None else f", others used {run['others']:.2f} cores"
    _say(
        f"  {turn + 1} {contender.name}: {rate(run['result'], kind):.0f} {unit}, "
        f"{run['peak_bytes'] / 1e9:.1f} GB, {run['wall_seconds']:.0f} s{others}"
    )


def _refuse_busy(allowed: bool) -> None:
    cores = machine.busy(2.0)
    _say(f"load {os.getloadavg()}, cores in use by others: {'not known' if cores is None else f'{cores:.2f}'}")
    if cores is not None and cores > QUIET_CORES and not allowed:
        sys.exit(
            f"Something else is using {cores:.2f} cores, and timings would mean nothing.\n"
            "  do: end it; --busy-ok runs anyway, and every run says on the page what others used"
        )


def _say(text: str) -> None:
    print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder of the public data sets")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/bench", help="models, rows and raw figures")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="where the page goes")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="the peers' Python")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FIELD), help="workloads, by comma")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every contender")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where every contender computes")
    parser.add_argument("--quick", action="store_true", help="two steps and one round, to see that everything runs")
    parser.add_argument("--full", action="store_true", help="all 96 examples, all 200 prompts: hours")
    parser.add_argument("--busy-ok", action="store_true", help="run although something else uses the processor")
    parser.add_argument(
        "--extras", nargs="*", choices=EXTRAS, default=EXTRAS, help="where a step goes, and cost against size"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only if name not in FIELD]
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(FIELD)}")
    if arguments.quick:
        arguments.repeats = 1
    arguments.out, arguments.data = arguments.out.absolute(), arguments.data.absolute()
    return arguments


if __name__ == "__main__":
    main()
