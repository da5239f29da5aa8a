"""`luthier data`: what is in the rows, before anything is trained on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import options, screen, words
from luthier.cli.options import Json
from luthier.cli.progress import display
from luthier.numbers import duration, number

if TYPE_CHECKING:
    from luthier.gate.audit import Audit, Progress
    from luthier.gate.clean import Cleaned
    from luthier.gate.diff import Diff
    from luthier.gate.show import Shown

JSON = dict[str, Any]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...", help="JSONL, JSON, CSV, TSV, Parquet or text, each plain or gzipped; folders; -."
    ),
]
PolicyName = Annotated[
    str, typer.Option("--policy", metavar="POLICY", help="default, support, health, legal, finance, or a policy file.")
]
Against = Annotated[
    list[str] | None,
    typer.Option("--against", metavar="FILE", help="Test rows, which must not be trained on. May be repeated."),
]
Benchmarks = Annotated[
    list[str] | None,
    typer.Option("--benchmark", metavar="FILE", help="Texts that must not be trained on. May be repeated."),
]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=0, help="Processes that look at rows; the result is the same.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Look at rows on this Ray cluster instead: auto, HOST:PORT. Needs the extra `ray`.",
    ),
]
DECISIONS = {"pass": "green", "warnings": "yellow", "blocked": "red"}
SENTENCES = {
    "pass": "pass: nothing that these rules look for stands in the way of training",
    "warnings": "pass, with warnings: look at them before you train",
    "blocked": "blocked: this must be mended, or waived with a reason, before training",
}

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at rows before anything is trained on them.")


@app.command()
def audit(
    context: typer.Context,
    files: Files,
    policy: PolicyName = "default",
    against: Against = None,
    benchmark: Benchmarks = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the report goes. Left out: a new one under audits/."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE",
            help="A new file for prompts that differ in one trait of a person, as JSON lines; as private as the rows.",
        ),
    ] = None,
    workers: Workers = 2,
    ray: Ray = None,
    json: Json = False,
) -> int:
    """Say what is in the rows; exit code 1 where the policy forbids to train on them.

    \b
    luthier data audit train.jsonl --policy support --against test.jsonl
    """
    settings: options.Settings = context.obj
    with display(quiet=settings.quiet) as tell:
        from luthier.gate import audit as stage
        from luthier.gate.policy import load_policy
        from luthier.report.gate import write_page

        folder = out or _new(files[0])
        done = stage.audit(
            files,
            load_policy(policy),
            folder,
            against=against or (),
            benchmarks=benchmark or (),
            pairs=pairs,
            workers=ray or workers,
            progress=_teller(tell),
        )
        page = write_page(folder)
    if json:
        screen.print_json(done.report)
    else:
        print_audit(done)
        screen.print_lines([f"report: {page}"])
    return stage.EXIT[done.decision]


@app.command()
def clean(
    context: typer.Context,
    files: Files,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The clean rows, as Parquet.")],
    policy: PolicyName = "default",
    against: Against = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The key of pseudonyms; made where there is none. Keep it elsewhere."
        ),
    ] = None,
    workers: Workers = 2,
    ray: Ray = None,
    json: Json = False,
) -> int:
    """Write the rows with the policy's mends, and a ledger of all that was changed or left out.

    \b
    luthier data clean train.jsonl --policy support --out clean.parquet
    """
    settings: options.Settings = context.obj
    with display(quiet=settings.quiet) as tell:
        from luthier.gate import clean as stage
        from luthier.gate.policy import load_policy
        from luthier.gate.private.replace import load_key
        from luthier.report.gate import write_page

        refuse_other(out)
        done = stage.clean(
            files,
            load_policy(policy),
            out,
            against=against or (),
            key=lambda: load_key(key or _key(), outside=out.parent),
            workers=ray or workers,
            progress=_teller(tell),
        )
        write_page(stage.beside(out, ".audit"))
    if json:
        screen.print_json({**done._asdict(), "audit": done.audit.report})
    else:
        print_cleaned(done, out)
    return 0


@app.command()
def diff(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A file or a folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A file or a folder.")],
    policy: PolicyName = "default",
    workers: Workers = 2,
    ray: Ray = None,
    json: Json = False,
) -> int:
    """Compare two versions of a data set.

    \b
    luthier data diff train.jsonl clean.parquet
    """
    import tempfile

    settings: options.Settings = context.obj
    with display(quiet=settings.quiet) as tell, tempfile.TemporaryDirectory(prefix="luthier-diff-") as work:
        from luthier.gate import diff as stage
        from luthier.gate.policy import load_policy

        found = stage.diff([a], [b], load_policy(policy), Path(work), workers=ray or workers, progress=_teller(tell))
    if json:
        screen.print_json(found.as_dict())
    else:
        print_diff(found)
    return 0


@app.command()
def show(
    row: Annotated[str, typer.Argument(metavar="ROW_ID", help="As findings name it: a1b2c3d4:17.")],
    audit: Annotated[
        Path | None,
        typer.Option("--audit", metavar="DIR", help="The audit's folder. Left out: the newest under audits/."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Show private data as it stands.")] = False,
    json: Json = False,
) -> int:
    """Show one row with all that is known of it.

    \b
    luthier data show a1b2c3d4:17
    """
    from luthier.gate import show as stage

    shown = stage.show(row, audit or stage.newest(), raw=raw)
    if json:
        screen.print_json(_shown_json(shown))
    else:
        print_shown(shown)
    return 0


def _teller(tell: Callable[[JSON], None]) -> Progress:
    return lambda what, done, total: tell({"event": "progress", "what": what, "done": done, "total": total})


def _new(file: str) -> Path:
    from luthier.gate.show import AUDITS
    from luthier.runs.naming import data_name, free

    return free(AUDITS / f"{time.strftime('%Y%m%d-%H%M%S')}-{data_name(file)}")


def _key() -> Path:
    import os

    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".config") / "luthier" / "pseudonyms.key"


def refuse_other(out: Path) -> None:
    """Clean rows are written as Parquet and under no other name."""
    from luthier.errors import InputError

    if out.suffix != ".parquet":
        raise InputError(
            "clean rows are written as Parquet", where=f"--out {out}", do=f"--out {out.with_suffix('.parquet')}"
        )


def print_audit(done: Audit) -> None:
    """What was found, for people."""
    report, work = done.report, done.report["work"]
    sides = ", ".join(f"{number(count)} {side}" for side, count in report["sides"].items())
    screen.print_lines(
        [
            f"{words.counted(report['rows'], 'row')} ({sides}) in {duration(work['seconds'])}",
            "",
        ]
    )
    found = words.findings(finding.as_dict() for finding in done.findings)
    screen.print_lines([*found, ""] if found else [])
    if "pairs" in report:
        screen.print_lines([_pairs(report["pairs"])])
    screen.print_lines([SENTENCES[done.decision]], style=DECISIONS[done.decision])


def _pairs(pairs: JSON) -> str:
    kinds = ", ".join(f"{number(count)} by {kind}" for kind, count in pairs["kinds"].items())
    if not kinds:
        return "pairs: none, because no prompt names a trait that can be changed; nothing was written"
    return f"pairs: {kinds} in {words.plain(pairs['file'])}"


def print_cleaned(done: Cleaned, out: Path) -> None:
    """What was mended, for people."""
    from luthier.gate.clean import beside

    left_out = sum(done.dropped.values())
    screen.print_lines(
        [f"{number(done.read)} rows read = {number(done.kept)} kept + {number(left_out)} left out"]
        + [
            f"  left out for {rule}: {number(count)}"
            for rule, count in sorted(done.dropped.items(), key=lambda i: -i[1])
        ]
        + [f"  mended {rule}: {number(count)}" for rule, count in sorted(done.changed.items(), key=lambda i: -i[1])]
        + ["", "what remains:" if done.audit.findings else "nothing remains to be seen by these rules"]
        + words.findings(finding.as_dict() for finding in done.audit.findings)
        + [
            "",
            f"rows:   {out}",
            f"ledger: {beside(out, '.ledger.parquet')}",
            f"report: {beside(out, '.audit')}/report.html",
        ]
    )


def print_diff(found: Diff) -> None:
    """What differs, for people."""
    screen.print_lines([f"A: {words.counted(found.a.rows, 'row')}, B: {words.counted(found.b.rows, 'row')}"])
    for name, count in found.counts.items():
        places = found.places.get(name, [])[: words.PLACES]
        screen.print_lines(
            [f"{name:8} {number(count)}" + (f"   {', '.join(map(words.plain, places))}" if places else "")]
        )
    made = screen.table("rule", "rows in A", "rows in B", right=("rows in A", "rows in B"))
    for rule in sorted({*found.a.findings, *found.b.findings}):
        made.add_row(rule, number(found.a.findings.get(rule, 0)), number(found.b.findings.get(rule, 0)))
    if made.rows:
        screen.print_lines([""])
        screen.console().print(made)


def print_shown(shown: Shown) -> None:
    """A row, for people."""
    row = shown.row
    label = f"  {', '.join(row.labels)}" if row.labels else "" if row.value is None else f"  {number(row.value)}"
    screen.print_lines(
        [words.plain(f"{row.id}  {row.file}:{row.line}  {row.side}{label}"), f"content {row.content}", ""]
    )
    for field in shown.fields:
        screen.print_lines([words.plain(f"{field.path} ({field.role}, {words.counted(len(field.text), 'character')})")])
        screen.print_lines([words.plain(field.text), ""])
    for hit in shown.hits:
        place = f" {hit['path']}[{hit['start']}:{hit['end']}]" if hit["path"] else ""
        other = f" -> {hit['other']}" if hit["other"] else ""
        screen.print_lines([words.plain(f"{hit['rule']}{place}: {hit['seen']}{other}")])
    for hit in shown.named_by:
        screen.print_lines([words.plain(f"named by {hit['row']} ({hit['file']}:{hit['line']}): {hit['rule']}")])
    for line in shown.ledger:
        screen.print_lines([words.plain(f"cleaned: {line['done']} for {line['rule']} {line['path']}")])
    if not (shown.hits or shown.named_by):
        screen.print_lines(["no rule saw anything in this row"])


def _shown_json(shown: Shown) -> JSON:
    row = shown.row
    return {
        "id": row.id,
        "content": row.content,
        "file": row.file,
        "line": row.line,
        "side": row.side,
        "labels": list(row.labels),
        "value": row.value,
        "fields": [field._asdict() for field in shown.fields],
        "hits": shown.hits,
        "named_by": shown.named_by,
        "ledger": shown.ledger,
    }
