"""Who starts jobs: Slurm, or processes of this machine that outlive the study, both through submitit.

Of submitit this uses what writes the batch file and what starts the job. Its own way to hand a job a function and take
back what it returns is pickle, of which lipbridge loads none: a job is a command here, and rows are files of JSON.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import psutil

from lipbridge.descendants import VARIABLE
from lipbridge.errors import ClusterError, MissingDependency, first_line
from lipbridge.study.engine.cluster_settings import ClusterSettings
from lipbridge.vocabulary import Status

COMMAND = 'pip install "lipbridge[cluster]"'
#: Slurm's words for a job that has ended, and what a cell is that it left without a row.
_ENDED = {
    "BOOT_FAIL": Status.FAILED,
    "CANCELLED": Status.FAILED,
    "COMPLETED": Status.FAILED,
    "DEADLINE": Status.TIMEOUT,
    "FAILED": Status.FAILED,
    "LAUNCH_FAILED": Status.FAILED,
    "NODE_FAIL": Status.FAILED,
    "OUT_OF_MEMORY": Status.MEMORY,
    "PREEMPTED": Status.FAILED,
    "REVOKED": Status.FAILED,
    "TIMEOUT": Status.TIMEOUT,
}
#: What its commands say where another try may succeed.
_PASSING = re.compile(
    r"unable to contact|socket timed out|connection (refused|reset|timed out)|zero bytes|temporarily|not responding"
    r"|in standby|communication (connection|shutdown)|try again|submit ?(job)? ?limit|MaxSubmitJob|timed out after",
    re.IGNORECASE,
)


class Away(Exception):
    """The scheduler cannot be reached, or takes no more jobs, at the moment."""


@dataclass(frozen=True)
class Needs:
    """Of a job: minutes, bytes of memory, cores."""

    minutes: int
    memory: int
    cores: int


@dataclass(frozen=True)
class State:
    """Of a job, in the scheduler's words; ``ended`` is what a cell without a row is then, None while it goes on."""

    words: str
    ended: Status | None = None


class Scheduler(Protocol):
    """Starts jobs and knows what became of them."""

    #: For people.
    name: str
    #: Seconds that a file may take to be seen here after its job has ended.
    settles: float

    @abstractmethod
    def submit(self, name: str, command: list[str], environment: Mapping[str, str], folder: Path, needs: Needs) -> str:
        """Start a command as a job with a name of its own, with files in ``folder``; its id.

        Raises:
            Away: if it may be tried again; the job may have been taken all the same.
            ClusterError: if it is refused.
        """

    @abstractmethod
    def find(self, name: str, folder: Path) -> str | None:
        """The id of the job of a name, if there is or was one.

        Raises:
            Away: if that cannot be told now.
        """

    @abstractmethod
    def states(self, jobs: Collection[str]) -> dict[str, State]:
        """Of each job.

        Raises:
            Away: if that cannot be told now.
        """

    @abstractmethod
    def cancel(self, jobs: Collection[str]) -> None:
        """End jobs, as far as that is possible."""


class Slurm(Scheduler):
    """A Slurm cluster, of which this machine has the commands.

    Raises:
        MissingDependency: without submitit.
        ClusterError: without Slurm.
    """

    name = "Slurm"
    settles = 15.0

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._submitit = _submitit()
        for program in ("sbatch", "srun", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise ClusterError(f"There is no {program} here. Run the study where Slurm's commands are.")

    def submit(self, name: str, command: list[str], environment: Mapping[str, str], folder: Path, needs: Needs) -> str:
        settings = self._settings
        parameters: dict[str, Any] = {
            "job_name": name,
            "time": needs.minutes,
            "mem": f"{-(-needs.memory // 2**20)}M",
            "cpus_per_task": needs.cores,
            "nodes": 1,
            "signal_delay_s": 0,  # no warning: cells end at limits of their own
            "use_srun": False,
            "setup": list(settings.setup),
            "additional_parameters": dict(settings.extra),
        }
        parameters |= {"partition": settings.partition} if settings.partition else {}
        parameters |= {"account": settings.account} if settings.account else {}
        parameters |= {"gpus_per_node": settings.gpus} if settings.gpus else {}
        try:
            executor = self._submitit.SlurmExecutor(folder)
            executor.update_parameters(**parameters)
            # The limits that this process may have are those of this machine.
            text = shlex.join(["env", "-u", VARIABLE]) + " " + _in(environment, command).removeprefix("env ")
            with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says comes with the error
                return str(executor._submit_command(text).job_id)
        except (self._submitit.core.utils.FailedJobError, self._submitit.core.utils.FailedSubmissionError) as error:
            why = _told(str(error))
        except (OSError, subprocess.SubprocessError) as error:
            why = first_line(error)
        except (RuntimeError, ValueError) as error:  # submitit's own, about what is not installed or not a parameter
            raise ClusterError(f"Slurm takes no jobs from here: {first_line(error)}.") from error
        if _PASSING.search(why):
            raise Away(why)
        raise ClusterError(f"Slurm refused a job: {why.rstrip('.')}. See the study's settings of the engine.")

    def find(self, name: str, folder: Path) -> str | None:
        words = self._ask(
            "squeue", "--noheader", "--states=all", f"--user={os.getuid()}", f"--name={name}", "--format=%i"
        )
        return words.split()[0] if words.split() else None

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        told = self._ask("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%r|%N")
        found: dict[str, State] = {}
        for line in told.splitlines():
            job, state, reason, nodes = [*line.split("|"), "", "", ""][:4]
            if job in jobs:
                found[job] = _state(state, reason, nodes)
        for job in jobs:
            if job not in found:  # Slurm forgets what ended some minutes ago, unless it keeps accounts
                found[job] = self._remembered(job)
        return found

    def cancel(self, jobs: Collection[str]) -> None:
        if jobs:
            with contextlib.suppress(Away):
                self._ask("scancel", *jobs)

    def _remembered(self, job: str) -> State:
        with contextlib.suppress(Away, FileNotFoundError):
            told = self._ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State")
            if told.strip():
                return _state(told.split()[0], "", "")
        return State("unknown to Slurm", Status.FAILED)

    def _ask(self, *command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
        except subprocess.TimeoutExpired as error:
            raise Away(f"{command[0]} gave no answer in {error.timeout:.0f} s") from None
        if done.returncode:
            raise Away(_told(done.stderr) or f"{command[0]} ended with exit code {done.returncode}")
        return done.stdout


class Processes(Scheduler):
    """Jobs are processes of this machine, started by submitit's local executor; they outlive this one."""

    name = "this machine"
    settles = 0.0

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._submitit = _submitit()
        self._own: dict[str, Any] = {}

    def submit(self, name: str, command: list[str], environment: Mapping[str, str], folder: Path, needs: Needs) -> str:
        executor = self._submitit.LocalExecutor(folder)
        executor.update_parameters(
            timeout_min=needs.minutes,
            signal_delay_s=0,
            gpus_per_node=self._settings.gpus,
            setup=self._settings.setup,
        )
        job = executor._submit_command(_in(environment, command))
        try:
            began = psutil.Process(int(job.job_id)).create_time()
        except psutil.Error:
            began = 0.0
        name = f"{job.job_id}@{began}"
        self._own[name] = job
        return name

    def find(self, name: str, folder: Path) -> str | None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "submitit.local._local" in process.cmdline() and str(folder) in process.cmdline():
                    return f"{process.pid}@{process.create_time()}"
        return None

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        self._own = {job: own for job, own in self._own.items() if not own.done()}  # which waits for what has ended
        return {job: self._state(job) for job in jobs}

    def cancel(self, jobs: Collection[str]) -> None:
        for job in jobs:
            with contextlib.suppress(psutil.Error):
                if (process := self._process(job)) is not None:
                    process.send_signal(signal.SIGTERM)

    def _state(self, job: str) -> State:
        with contextlib.suppress(psutil.Error):
            process = self._process(job)
            if process is not None and process.status() != psutil.STATUS_ZOMBIE:
                return State("running")
        return State("ended", Status.FAILED)

    def _process(self, job: str) -> psutil.Process | None:
        pid, _, began = job.partition("@")
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(int(pid))
            return process if process.create_time() == float(began) else None
        return None


def _submitit() -> Any:
    try:
        return import_module("submitit")
    except ImportError:
        raise MissingDependency("submitit", COMMAND) from None


def _in(environment: Mapping[str, str], command: list[str]) -> str:
    return shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *command])


def _state(state: str, reason: str, nodes: str) -> State:
    name = state.strip().upper().split(" ")[0].rstrip("+")
    words = name.lower().replace("_", " ")
    if reason.strip() not in ("", "None"):
        words += f" ({reason.strip()})"
    if nodes.strip() not in ("", "(null)"):
        words += f" on {nodes.strip()}"
    return State(words, _ENDED.get(name))


def _told(text: str) -> str:
    """What a command of Slurm said: its lines that say ``error``, or all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = dict.fromkeys(line.partition("error: ")[2] for line in lines if "error: " in line)
    return "; ".join(errors or lines)[:300]


__all__ = ["Away", "Needs", "Processes", "Scheduler", "Slurm", "State"]
