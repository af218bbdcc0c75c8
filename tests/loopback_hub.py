"""A model hub on the loopback interface: what huggingface_hub's client asks of the real one, answered from local folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repositories: Mapping[str, Path]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serve folders under ids such as ``openai/clip``, or ``datasets/ylecun/mnist`` for data.

    Gives the environment for a client, and the list of files that were fetched so far.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            self.do_GET(wanted)

        def do_GET(self, wanted: Sequence[str] | None = None) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            called = path.removeprefix("api/").removeprefix("models/").split("/")
            parts = 3 if called[0] == "datasets" else 2
            name, rest = "/".join(called[:parts]), "/".join(called[parts:])
            if name not in repositories:
                return self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            folder = repositories[name]
            files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
            if rest.startswith("resolve/"):
                return self.file(name, files, rest.split("/", 2)[-1])
            if rest.startswith(("tree/", "paths-info/")):
                entries = {n: {"type": "file", "size": f.stat().st_size, "oid": _blob(f)} for n, f in files.items()}
                places = {str(p) for n in files for p in Path(n).parents if str(p) != "."}
                entries |= {n: {"type": "directory", "size": 0, "oid": COMMIT} for n in places}
                if wanted is None:  # what lies in a folder, or below it
                    under, deep = "".join(rest.split("/", 2)[2:]) or ".", "recursive=true" in self.path.lower()
                    wanted = [n for n in entries if under in map(str, list(Path(n).parents)[: None if deep else 1])]
                said = [{"path": n, **entries[n]} for n in map(unquote, wanted) if n in entries]
                return self.answer(200, json.dumps(said).encode())
            if rest and not rest.startswith("revision/"):
                return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            about = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            return self.answer(200, json.dumps(about | {"private": False}).encode())

        def file(self, name: str, files: Mapping[str, Path], wanted: str) -> None:
            if wanted not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            body = files[wanted].read_bytes()
            if self.command == "GET":
                asked.append(f"{name}/{wanted}")
            mark = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(200, body, {"ETag": mark, "X-Repo-Commit": COMMIT})

        def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for n, v in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(n, v)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield (
            {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"},
            asked,
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _blob(path: Path) -> str:
    """What git calls a file's content."""
    body = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
