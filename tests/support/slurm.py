"""A real Slurm of one node on this machine, of Debian's packages, in a folder of its own: nothing of it stays.

Its daemons run as this user, without systemd and without control groups; commands find it by ``SLURM_CONF``. To try it
by hand, ``python -m tests.support.slurm`` starts one and prints what a shell has to export, until it is interrupted.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
#: Daemons are not on everybody's path.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
DefMemPerCPU=100
MpiDefault=none
ReturnToService=2
KillWait=2
MinJobAge=300
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=60 State=UP
"""


def missing() -> str:
    """What is not here, in words; empty if a Slurm can be started."""
    if sys.platform != "linux":
        return "Slurm needs Linux"
    if os.getuid() != 0:
        return "the daemons of Slurm need root to start jobs"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if not lacking:
        return ""
    return f"no {', '.join(lacking)} here: apt-get install slurmctld slurmd slurm-client munge"


class Slurm:
    """A controller, a node and their messenger. A context manager."""

    def __init__(self, cpus: int = 4) -> None:
        # Short, since it holds a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._log = open(self.folder / "daemons.txt", "wb")  # noqa: SIM115 - closed at the end
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._cpus = cpus

    @property
    def environment(self) -> Mapping[str, str]:
        """By which Slurm's commands find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}

    def __enter__(self) -> Slurm:
        try:
            self._configure()
            key, sock = self.folder / "munge.key", self.folder / "munge.socket"
            # Its folder is private, which it takes for a mistake unless it is forced.
            self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}",
                        f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                        f"--seed-file={self.folder}/munged.seed", "--num-threads=2")  # fmt: skip
            self._wait_for(sock.exists, "munged's socket")
            self.start_controller()
            self._start("slurmd", "-D", "-f", self.environment["SLURM_CONF"])
            self._wait_for(lambda: self.ask("sinfo", "--noheader", "--format=%T") == "idle", "an idle node")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.ask("scancel", "--user", getpass.getuser(), timeout=5)
            self._wait_for(lambda: not self.ask("squeue", "--noheader"), "the end of its jobs", seconds=10)
        for name in reversed(list(self._running)):
            self._stop(name)
        self._log.close()
        for _ in range(50):  # a step may be writing its last words
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.1)

    def ask(self, *command: str, timeout: float = 30) -> str:
        """What a command of Slurm prints; empty if it fails."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=timeout
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def start_controller(self) -> None:
        self._start("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])

    def stop_controller(self) -> None:
        """As when its machine goes away: jobs run on, and commands fail."""
        self._stop("slurmctld")

    def log(self) -> str:
        return (self.folder / "daemons.txt").read_text(errors="replace")

    def _configure(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                folder=self.folder,
                controller=_free_port(),
                daemon=_free_port(),
                cpus=self._cpus,
                memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10,
            )
        )

    def _start(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=_PATH)
        assert program is not None
        self._running[name] = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )

    def _stop(self, name: str) -> None:
        daemon = self._running.pop(name)
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait_for(self, thing, what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not thing():
            ended = [name for name, daemon in self._running.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come; ended: {ended}\n{self.log()[-4000:]}")
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    if missing():
        sys.exit(missing())
    with contextlib.suppress(KeyboardInterrupt), Slurm() as cluster:
        print("".join(f"export {name}={value}\n" for name, value in cluster.environment.items()), flush=True)  # noqa: T201
        signal.pause()
