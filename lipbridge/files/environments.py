"""Python environments of tools that cannot, or must not, be installed beside lipbridge."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipbridge.data.folders import cache_folder
from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import LipbridgeError, MissingDependency

#: Where environments are, if not in the user's cache.
VARIABLE = "LIPBRIDGE_VERIFIERS"
#: The file that says that an environment is whole: what was installed.
READY = "lipbridge-installed.txt"


@dataclass(frozen=True)
class Environment:
    """A tool's Python environment: made once, by :meth:`make`, of packages of pinned versions.

    Attributes:
        name: of its folder; what ``lipbridge verifiers install`` takes.
        packages: as pip takes them, each with its version.
        alone: packages that are installed without what they ask for.
        size: on the disk, in words for people.
        licence: of the tool.
        modules: what must be importable afterwards.
    """

    name: str
    packages: tuple[str, ...]
    size: str
    licence: str
    modules: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """In ``$LIPBRIDGE_VERIFIERS``, or the user's cache."""
        given = os.environ.get(VARIABLE)
        return (Path(given) if given else cache_folder("verifiers")) / self.name

    @property
    def ready(self) -> bool:
        """Whether it is there, and whole, and of these versions."""
        try:
            return (self.folder / READY).read_text() == self._facts() and self.program("python").exists()
        except OSError:
            return False

    @property
    def command(self) -> str:
        """What a user types to make it."""
        return f"lipbridge verifiers install {self.name}"

    def program(self, name: str) -> Path:
        """A program of the environment."""
        return self.folder / "bin" / name

    def python(self) -> str:
        """Its Python.

        Raises:
            MissingDependency: if it is not installed.
        """
        if not self.ready:
            raise MissingDependency(f"Verifier `{self.name}`", self.command)
        return str(self.program("python"))

    def site(self) -> Path:
        """Where its packages are."""
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    def make(self, options: Sequence[str] = ()) -> None:
        """Make it anew. What pip prints goes to standard error.

        Args:
            options: further ones of ``pip install``, such as another index.

        Raises:
            LipbridgeError: if pip fails; nothing is left behind then.
        """
        self.remove()
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            venv.EnvBuilder(with_pip=True).create(self.folder)
            python = str(self.program("python"))
            calls: list[list[str]] = [["-m", "pip", "install", *options, *self.packages]]
            if self.alone:
                calls.append(["-m", "pip", "install", "--no-deps", *options, *self.alone])
            calls.append(["-c", f"import {', '.join(self.modules)}"])
            for call in calls:
                ended = subprocess.run([python, *call], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
                if ended.returncode:
                    raise LipbridgeError(
                        f"`{' '.join(call[:3])}` of {self.name} ended with exit code {ended.returncode}: what it said "
                        "stands above. `--pip OPTION` hands options to pip."
                    )
            write_atomically(self.folder / READY, self._facts().encode())
        except OSError as error:
            self.remove()
            raise LipbridgeError(f"{self.folder}: {error.strerror or error}") from error
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take it away, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _facts(self) -> str:
        return "\n".join([*self.packages, *self.alone]) + "\n"


__all__ = ["VARIABLE", "Environment"]
