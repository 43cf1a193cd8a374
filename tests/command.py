"""The command line in a process of its own, without waiting for its imports: forked from a server that has them already."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch._dynamo", "transformers.models.auto", "rather.pipeline.run", "rather.report.report", "rather.store.agreement"]
)


def run(arguments: list[str], folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`rather` with `arguments` in `folder`; what it printed comes back with its exit code."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        names = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
        process = SERVER.Process(target=_main, args=(arguments, str(folder), *names))
        process.start()
        process.join(timeout)
        assert process.exitcode is not None, f"rather {' '.join(arguments)} is still running after {timeout} s"
        texts = [(file.seek(0), file.read())[1] for file in (out, err)]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _main(arguments: list[str], folder: str, out: str, err: str) -> None:
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ["COLUMNS"] = "200"
    sys.argv = ["rather", *arguments]
    from rather import __main__

    __main__.main()
