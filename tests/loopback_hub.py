"""A model hub on the loopback interface: what huggingface_hub's client asks of the real one, answered from local folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(models: Mapping[str, Path]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serve folders under ids such as ``openai/clip``. Gives the environment for a client, and the files asked for so far."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            api = path.removeprefix("api/models/")
            name, rest = "/".join(api.split("/")[:2]), "/".join(api.split("/")[2:])
            if name not in models:
                return self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            files = {str(f.relative_to(models[name])): f for f in sorted(models[name].rglob("*")) if f.is_file()}
            if api == path:  # a file: NAME/resolve/REVISION/FILE
                wanted = rest.split("/", 2)[-1]
                if wanted not in files:
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                body = files[wanted].read_bytes()
                if self.command == "GET":
                    asked.append(f"{name}/{wanted}")
                mark = f'"{hashlib.sha1(body).hexdigest()}"'
                return self.answer(200, body, {"ETag": mark, "X-Repo-Commit": COMMIT})
            if rest.startswith("tree/"):
                said = [
                    {"type": "file", "path": n, "size": f.stat().st_size, "oid": _blob(f)} for n, f in files.items()
                ]
                return self.answer(200, json.dumps(said).encode())
            about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files], "private": False}
            return self.answer(200, json.dumps(about).encode())

        def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for n, v in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(n, v)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
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
