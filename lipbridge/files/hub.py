"""Models of the Hugging Face Hub: ``hf://OWNER/NAME/PATH[@REVISION]``, kept in the user's cache once fetched."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lipbridge.errors import InvalidArgument, MissingDependency, ModelFileError, first_line

#: How such a model begins.
SCHEME = "hf://"
#: Characters of owners, names and paths, none of which begins with a dot or ends with one.
_PART = r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_FORM = re.compile(rf"hf://({_PART}/{_PART})/((?:{_PART}/)*{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


def is_hub(text: str) -> bool:
    """Whether a MODEL is one of the Hub."""
    return text.startswith(SCHEME)


@dataclass(frozen=True)
class HubModel:
    """A file of a repository at a revision (a branch, a tag or a commit; the main branch if it is None)."""

    repository: str
    file: str
    revision: str | None = None

    @staticmethod
    def parse(text: str, parameter: str = "MODEL") -> HubModel:
        """``hf://OWNER/NAME/PATH[@REVISION]``.

        Raises:
            InvalidArgument: for anything else.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise InvalidArgument(parameter, "be hf://OWNER/NAME/PATH[@REVISION], with a file as PATH", text)
        return HubModel(*match.groups())

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}/{self.file}" + (f"@{self.revision}" if self.revision else "")

    def fetch(self) -> Fetched:
        """The file in the user's cache, downloaded if it is not there yet.

        Where it is looked for, with which token and whether offline is what huggingface_hub's own settings say
        (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_HOME``).

        Raises:
            MissingDependency: if huggingface_hub is not installed.
            ModelFileError: if there is no such repository, revision or file, or it is gated, or cannot be reached.
        """
        try:
            hub: Any = importlib.import_module("huggingface_hub")
            known: Any = importlib.import_module("huggingface_hub.utils")
        except ImportError:
            raise MissingDependency("huggingface_hub", 'pip install "lipbridge[hub]"') from None
        try:
            path = Path(hub.hf_hub_download(self.repository, self.file, revision=self.revision))
        except known.GatedRepoError:
            why = "is gated: ask for access on its page, and log in with `hf auth login` or set HF_TOKEN"
            raise self._error(f"repository {self.repository} {why}") from None
        except known.RepositoryNotFoundError:
            why = "is not there, or private: see that it is spelt so, or log in with `hf auth login` or set HF_TOKEN"
            raise self._error(f"repository {self.repository} {why}") from None
        except known.RevisionNotFoundError:
            raise self._error(f"repository {self.repository} has no revision {self.revision!r}") from None
        except known.LocalEntryNotFoundError:
            raise self._error(
                "the Hub cannot be reached, or HF_HUB_OFFLINE is set, and the cache has no such file"
            ) from None
        except known.EntryNotFoundError:
            where = f" at {self.revision}" if self.revision else ""
            raise self._error(f"repository {self.repository} has no file {self.file}{where}") from None
        except (known.HfHubHTTPError, known.HFValidationError, OSError, ValueError) as error:
            raise self._error(f"it cannot be fetched ({first_line(error)})") from error
        parts = path.parts
        commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else self.revision or "main"
        return Fetched(path, replace(self, revision=commit))

    def _error(self, why: str) -> ModelFileError:
        return ModelFileError(f"{self}: {why}.")


@dataclass(frozen=True)
class Fetched:
    """A file of the cache, and the same model at the commit that it is of."""

    path: Path
    pinned: HubModel


__all__ = ["Fetched", "HubModel", "is_hub"]
