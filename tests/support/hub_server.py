"""A server that plays the Hugging Face Hub: a few repositories in memory, no network."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: The commit of every repository's main branch and of its tag v1.
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve ``OWNER/NAME/PATH`` -> bytes; repositories named ``gated`` refuse. Gives the endpoint."""
    repositories = {"/".join(name.split("/")[:2]) for name in files}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path, _, rest = self.path.partition("?")[0].strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            fault = ""
            if path not in repositories:
                fault = "RepoNotFound"
            elif path.endswith("/gated"):
                fault = "GatedRepo"
            elif revision not in ("main", "v1", COMMIT):
                fault = "RevisionNotFound"
            elif f"{path}/{file}" not in files:
                fault = "EntryNotFound"
            content = b"" if fault else files[f"{path}/{file}"]
            self.send_response({"": 200, "GatedRepo": 403, "RepoNotFound": 401}.get(fault, 404))
            if fault:
                self.send_header("X-Error-Code", fault)
            if not fault or fault == "EntryNotFound":
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
