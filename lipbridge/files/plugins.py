"""What all that is found through entry points has in common: modules that it needs, and how to install them."""

from __future__ import annotations

from importlib.util import find_spec

from lipbridge.errors import MissingDependency


class Plugin:
    """Its own module imports its tool when asked, not before.

    Attributes:
        requires: modules that must be installed.
        install: the command that installs them.
    """

    requires: tuple[str, ...] = ()
    install: str = ""

    def require(self) -> None:
        """Raise MissingDependency, with the command that installs them, unless the required modules are there."""
        missing = [module for module in self.requires if find_spec(module) is None]
        if missing:
            raise MissingDependency(", ".join(missing), self.install)


__all__ = ["Plugin"]
