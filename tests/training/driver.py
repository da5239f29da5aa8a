"""Runs `tune` and `resume` in processes of their own, which end at a chosen moment: what a power cut does to a run.

Started once as a script; each line on standard input is a job, done in a forked child so that the imports are paid for
once. A job ends itself with `kill -9` before the n-th change to a file of its run, before the first one whose path
matches, or at an event. Answers: one line with the child's wait status.
"""

import importlib
import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path

CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}
"""Audit events of Python that stand before a change to the disk."""


def watch(root, job):
    """Counts the changes below `root`, names them in a file beside it, and ends the process before the one that is
    meant."""
    seen = 0
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event, arguments):
        nonlocal seen
        if event not in CHANGES or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(arguments[0])
        if not path.startswith(root) or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        seen += 1
        line = f"{event} {path[len(root) :]}"
        os.write(log, f"{line}\n".encode())
        if seen == job.get("kill_at") or (job.get("kill_match") and re.search(job["kill_match"], line)):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def work(job):
    """Does one job and returns the exit code that the command line would."""
    from luthier.errors import LuthierError
    from luthier.recipe.load import load
    from luthier.recipe.sweep import axes
    from luthier.workflow.sweep import sweep
    from luthier.workflow.tune import resume, tune

    root = Path(job["root"])

    def tell(event):
        wanted = job.get("at")
        if wanted and all(event.get(key) == value for key, value in wanted.items()):
            os.kill(os.getpid(), getattr(signal, job["signal"]))

    watch(str(root), job)
    try:
        if job["verb"] == "tune":
            tune(load(job["recipe"]), root, tell=tell)
        elif job["verb"] == "sweep":
            sweep(load(job["recipe"]), axes(job["axes"]), root, tell=tell)
        else:
            resume(root, tell=tell)
    except LuthierError as error:
        print(error)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def child(job):
    with open(job["out"], "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    code = work(job)
    sys.stdout.flush()
    os._exit(code)


def main():
    # Whatever a run imports on the way; children then need not.
    for name in (
        "luthier.workflow.sweep", "luthier.report.page", "luthier.governance.card", "rouge_score.rouge_scorer",
        "sacrebleu", "transformers.models.llama.modeling_llama", "ruamel.yaml", "scipy.stats", "luthier.gate.audit",
    ):  # fmt: skip
        importlib.import_module(name)

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
