"""Kills and full disks at random moments: what was finished is there afterwards, and what was begun can be ended.

    python -m benchmarks.kills [--trials 50] [--seed 0] [--only train resume overwrite compare]

Each trial starts a real process of an operation on a run of iris, and either ends it with SIGKILL at a random moment or
gives it a disk that is full at a random byte (a small tmpfs where this process may mount one; otherwise, and in half of
the trials, a limit of the size of files). Then, from outside:

- *train*: what is in the folder is whole (a checkpoint that loads, metrics of whole lines, a model that loads), and
  going on ends with weights that are bit-identical to those of the unbroken run;
- *resume*: the same, and the checkpoint that was there is there or has been replaced by a later one;
- *overwrite*: the old run is there to the last byte, or the new one is there whole; and the new one can be ended;
- *compare*: the run is as it was, and an earlier report is, or the new one is whole; no process of a verifier is left,
  and after the next start no temporary folder.

``lost``: something finished is missing or changed. ``damaged``: a file is not whole. ``stuck``: the operation cannot be
brought to its end afterwards. ``unnamed``: a full disk was told without the name of a file. All should be 0.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch

import lipbridge
from lipbridge.files import run_folder
from lipbridge.files.container import load_tensors

DATA = lipbridge.load_dataset("iris")
OLD = lipbridge.TrainingConfig(epochs=3, batch_size=30, penalty=0.01)
NEW = dataclasses.replace(OLD, epochs=8, penalty=0.02)
FILES = ("checkpoint.safetensors", "metrics.csv", "metrics.jsonl", "model.safetensors", "run.json")
OPERATIONS = ("train", "resume", "overwrite", "compare")
Content = dict[str, bytes]


def fit(folder: Path, config: lipbridge.TrainingConfig, **options: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    module = lipbridge.mlp([4, 16, 3], "abs")
    return lipbridge.fit(module, DATA, config, out=folder, progress=False, device="cpu", **options).module


def content(folder: Path) -> Content:
    """What a reader of the run finds; the newer lipbridge first brings to its end what a kill cut short."""
    getattr(run_folder, "settle", lambda _: None)(folder)
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


class Damage(Exception):
    """A word of the table, and what was found."""


def require(true: bool, word: str, fact: object) -> None:
    if not true:
        raise Damage(word, fact)


def require_whole(folder: Path) -> None:
    """Every file that is there can be read."""
    try:
        if (folder / "checkpoint.safetensors").exists():
            load_tensors(folder / "checkpoint.safetensors")
        if (folder / "model.safetensors").exists():
            lipbridge.load(folder)
        if (folder / "run.json").exists():
            json.loads((folder / "run.json").read_text())
        for line in (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else ():
            json.loads(line)
    except Exception as error:
        raise Damage("damaged", error) from error


def require_finished(folder: Path, config: lipbridge.TrainingConfig) -> None:
    """The five files of one run, of these settings."""
    require_whole(folder)
    require(set(content(folder)) == set(FILES), "lost", sorted(content(folder)))
    _, facts = load_tensors(folder / "checkpoint.safetensors")
    record = json.loads((folder / "run.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    model = lipbridge.load(folder)
    bound = lipbridge.trivial_bound(lipbridge.capture(model, (4,)), config.norm).value
    for found in (facts["config"], record["config"]):
        require(found["penalty"] == config.penalty, "lost", found)
    require(len(lines) == len(facts["history"]) == config.epochs, "lost", f"{len(lines)} rows")
    require(record["result"]["bound"] == bound, "lost", "model.safetensors and run.json are of two runs")


# --- processes -------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], object], log: Path, limit: int | None = None) -> int:
    """A copy of this process that does the work, and tells an error as the command line does."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            work()
            code = 0
        except (lipbridge.errors.LipbridgeError, OSError) as error:
            os.write(2, f"error: {error}\n".encode())
            code = 2
    finally:
        os._exit(code)


def ended(pid: int, after: float | None = None) -> int:
    """Wait for a process, killing it after some seconds; its exit code, or minus the signal."""
    start = time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if after is not None and time.monotonic() - start > after:
            os.kill(pid, signal.SIGKILL)
            after = None
        time.sleep(0.0005)


def workers(temporary: Path) -> bytes:
    """The processes of verifiers whose files are in this folder."""
    return subprocess.run(["pgrep", "-f", f"worker {temporary}"], capture_output=True, check=False).stdout


@contextlib.contextmanager
def small_disk(kibibytes: int) -> Generator[Path | None]:
    """A file system of this size, or None where this process may not mount one."""
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={max(kibibytes, 4)}k", "tmpfs", name]
        mounted = sys.platform == "linux" and subprocess.run(command, capture_output=True, check=False).returncode == 0
        try:
            yield Path(name) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", "-l", name], check=True)


# --- trials ----------------------------------------------------------------------------------------------------------


class Bench:
    """The finished runs that trials start from, and how long each operation takes."""

    def __init__(self, root: Path, draw: random.Random, operations: Sequence[str]) -> None:
        self.root, self.draw = root, draw
        lipbridge.capture(lipbridge.mlp([4, 16, 3], "abs"), (4,))  # imported once, for all copies of this process
        for name, config in (("old", OLD), ("new", NEW)):
            require(ended(forked(lambda n=name, c=config: fit(root / n, c), root / "log")) == 0, "stuck", name)
        self.weights = content(root / "new")["model.safetensors"]
        self.begin(root / "half", "resume", first=True)
        (root / "report.html").write_text("<!doctype html>\nearlier\n</html>\n")
        self.seconds: dict[str, float] = {}
        for operation in operations:
            start = time.monotonic()
            folder = self.folder("timed", operation)
            require(ended(self.start(folder, operation)) == 0, "stuck", (root / "log").read_text())
            self.seconds[operation] = time.monotonic() - start

    def begin(self, folder: Path, operation: str, first: bool = False) -> None:
        """What is there before the operation."""
        if operation == "resume" and first:
            pid = forked(lambda: fit(folder, NEW), self.root / "log")
            while not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_text()) < 300:
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            require_whole(folder)
        elif operation == "resume":
            shutil.copytree(self.root / "half", folder)
        elif operation in ("overwrite", "compare"):
            shutil.copytree(self.root / "old", folder)
        if operation == "compare":
            shutil.copy(self.root / "report.html", folder.parent / "report.html")

    def folder(self, trial: object, operation: str, disk: Path | None = None) -> Path:
        folder = (disk or self.root / f"{operation}-{trial}") / "run"
        folder.parent.mkdir(exist_ok=True)
        self.begin(folder, operation)
        return folder

    def start(self, folder: Path, operation: str, limit: int | None = None) -> int:
        log = self.root / "log"
        if operation == "compare":
            report = ["compare", str(folder), "--verifiers", "trivial", "--report", str(folder.parent / "report.html")]
            report += ["--time-limit", "1", "--points", "4"]
            return forked(lambda: self.exit_with(report, folder.parent), log, limit)
        options = {operation: True} if operation != "train" else {}
        return forked(lambda: fit(folder, NEW, **options), log, limit)

    def exit_with(self, arguments: list[str], temporary: Path) -> None:
        from lipbridge.cli.app import run

        os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
        os._exit(run(arguments))

    def judge(self, folder: Path, operation: str, full: bool, code: int, room: Callable[[], object]) -> None:
        """Raise what is wrong after an operation that was cut short."""
        log = (self.root / "log").read_text(errors="replace")
        if operation == "compare":
            require(content(folder) == content(self.root / "old"), "lost", "the run")
            report = (folder.parent / "report.html").read_text()
            whole = report.startswith("<!doctype html>") and report.rstrip().endswith("</html>")
            require(whole, "damaged", "the report")
        elif operation == "overwrite":
            if content(folder) != content(self.root / "old"):
                require_finished(folder, NEW)
        else:
            require_whole(folder)
        if operation == "resume":
            epochs = len(load_tensors(folder / "checkpoint.safetensors")[1]["history"])
            _, before = load_tensors(self.root / "half" / "checkpoint.safetensors")
            require(epochs >= len(before["history"]), "lost", f"{epochs} epochs are left")
        if full and code == 2:
            require(re.search(r"/(run|report|lipbridge-)\S*", log) is not None, "unnamed", log[-500:])
        room()
        if operation == "compare":
            deadline = time.monotonic() + 120.0  # one that still imports hears of it afterwards
            while left := workers(folder.parent):
                require(time.monotonic() < deadline, "lost", f"processes are left: {left!r}")
                time.sleep(0.1)
            with contextlib.suppress(ImportError):  # what the next command does first
                importlib.import_module("lipbridge.disk.temporary").sweep(parent=folder.parent)
            names = sorted(
                path.name for path in folder.parent.iterdir() if path.name not in ("run", "report.html", ".ballast")
            )
            require(not names, "damaged", f"temporary files are left: {names}")
            return
        self.bring_to_its_end(folder, operation)

    def bring_to_its_end(self, folder: Path, operation: str) -> None:
        """Going on where that is possible, otherwise anew: as a user would, and to the same weights."""
        ways: list[dict[str, bool]] = [{"resume": True}, {"overwrite": True} if operation == "overwrite" else {}]
        codes = []
        for options in ways:
            codes.append(ended(forked(lambda o=options: fit(folder, NEW, **o), self.root / "log")))
            if codes[-1] == 0:
                break
        require(codes[-1] == 0, "stuck", (self.root / "log").read_text())
        require_finished(folder, NEW)
        got, wanted = (lipbridge.load(place).state_dict() for place in (folder, self.root / "new"))
        require(all(torch.equal(got[name], value) for name, value in wanted.items()), "lost", "bits of the weights")
        hidden = {path.name for path in folder.iterdir()} - {*FILES, ".lock"}
        require(not hidden, "damaged", f"temporary files are left: {hidden}")

    def trial(self, number: int, operation: str, full: bool) -> str:
        """``cut short`` or ``finished``; raises Damage."""
        if not full:
            folder = self.folder(f"kill-{number}", operation)
            code = ended(self.start(folder, operation), self.draw.uniform(0.0, 1.02 * self.seconds[operation]))
            self.judge(folder, operation, full, code, lambda: None)
            shutil.rmtree(folder.parent)
            return "cut short" if code else "finished"
        sizes = [file.stat().st_size for file in (self.root / "new").iterdir()]
        with small_disk(sum(sizes) // 256 + 2000) as disk:
            if disk is None or number % 2:
                folder = self.folder(f"full-{number}", operation)
                limit = self.draw.randrange(max(sizes) if operation != "compare" else 200_000)
                code = ended(self.start(folder, operation, limit))
                self.judge(folder, operation, full, code, lambda: None)
                shutil.rmtree(folder.parent)
            else:
                folder = self.folder("", operation, disk)
                ballast = disk / ".ballast"
                free = shutil.disk_usage(disk).free
                spare = self.draw.randrange(0, 2 * sum(sizes) if operation != "compare" else 600_000, 4096)
                ballast.write_bytes(b"x" * max(0, free - spare))
                code = ended(self.start(folder, operation))
                self.judge(folder, operation, full, code, ballast.unlink)
        return "cut short" if code else "finished"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="of each operation and failure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("cut short", "finished", "lost", "damaged", "stuck", "unnamed")
    shown: set[tuple[str, str]] = set()
    print("| operation | failure | trials | " + " | ".join(columns) + " |")
    print("|---" * (3 + len(columns)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), random.Random(arguments.seed), arguments.only)
        for operation in arguments.only:
            for full in (False, True):
                counts: Counter[str] = Counter()
                for number in range(arguments.trials):
                    try:
                        counts[bench.trial(number, operation, full)] += 1
                    except Damage as damage:
                        word, fact = damage.args
                        counts[word] += 1
                        if (operation, word) not in shown:
                            shown.add((operation, word))
                            print(f"{operation}: {word}: {' '.join(str(fact).split())[:300]}", file=sys.stderr)
                words = " | ".join(str(counts[column]) for column in columns)
                failure = "full disk" if full else "SIGKILL"
                print(f"| {operation} | {failure} | {arguments.trials} | {words} |", flush=True)


if __name__ == "__main__":
    main()
