"""A model hub on the loopback interface: what huggingface_hub's client asks of the real one, answered from local folders.

Files are served whole or in ranges, at one commit, by the branch `main`. Pushing makes a repository, takes small files in
the commit and large ones (``*.safetensors``) as LFS objects, and writes them into the folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(
    repositories: Mapping[str, Path], *, gated: Sequence[str] = (), into: Path | None = None, token: str | None = None,
    ranges: bool = True,
) -> Iterator[tuple[dict[str, str], list[str]]]:  # fmt: skip
    """Serve folders under ids such as ``openai/clip``, or ``datasets/ylecun/mnist`` for data.

    Args:
        repositories: id -> folder.
        gated: ids whose files are refused.
        into: the folder in which pushed repositories are made, as ``org/name`` and, for a branch, ``org/name@branch``.
        token: what a client must show to see anything.
        ranges: whether a part of a file can be asked for.
    Gives the environment for a client, and the list of files that were fetched whole so far.
    """
    asked: list[str] = []
    repositories = dict(repositories)
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:  # an LFS object
            oid = self.path.rpartition("/")[2]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert hashlib.sha256(body).hexdigest() == oid
            objects[oid] = body
            self.answer(200, b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path).strip("/")
            if into is not None and self.allowed():
                pushed = re.fullmatch(r"api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
                if path == "api/repos/create":
                    return self.create(json.loads(body))
                if path == "api/validate-yaml":
                    return self.answer(200, b'{"errors": [], "warnings": []}')
                if path.endswith(".git/info/lfs/objects/batch"):
                    return self.batch(json.loads(body))
                if pushed:
                    return getattr(self, pushed[2])(pushed[1], pushed[3], body)
            wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return self.do_GET(wanted)

        def allowed(self) -> bool:
            return token is None or self.headers.get("Authorization") == f"Bearer {token}"

        def do_GET(self, wanted: Sequence[str] | None = None) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            called = path.removeprefix("api/").removeprefix("models/").split("/")
            parts = 3 if called[0] == "datasets" else 2
            name, rest = "/".join(called[:parts]), "/".join(called[parts:])
            if not self.allowed():
                return self.answer(401, b'{"error": "Invalid username or password."}', {"X-Error-Message": "no"})
            if name not in repositories:
                return self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            folder = repositories[name]
            files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
            revision = rest.split("/")[1] if rest.startswith(("resolve/", "revision/", "tree/")) else "main"
            if revision not in ("main", COMMIT):
                return self.answer(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            if rest.startswith("resolve/"):
                if name in gated:
                    return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
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
            held = [{"rfilename": n, "size": f.stat().st_size} for n, f in files.items()]
            about = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": held}
            return self.answer(200, json.dumps(about | {"private": False}).encode())

        def file(self, name: str, files: Mapping[str, Path], wanted: str) -> None:
            if wanted not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            body = files[wanted].read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if part and ranges:
                start, stop = int(part[1]), int(part[2] or len(body) - 1) + 1
                headers["Content-Range"] = f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"
                return self.answer(206, body[start:stop], headers)
            if self.command == "GET":
                asked.append(f"{name}/{wanted}")
            return self.answer(200, body, headers)

        def create(self, wanted: Mapping[str, str]) -> None:
            assert into is not None
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            url = f"{address}/{name}"
            if name in repositories:
                return self.answer(409, json.dumps({"url": url, "error": "exists"}).encode())
            repositories[name] = into / name
            repositories[name].mkdir(parents=True)
            (repositories[name] / ".private").write_text(
                str(bool(wanted.get("private") or wanted.get("visibility") == "private"))
            )
            return self.answer(200, json.dumps({"url": url, "id": name, "name": name}).encode())

        def branch(self, name: str, revision: str, _: bytes) -> None:
            assert into is not None
            (into / f"{name}@{revision}").mkdir(parents=True)
            return self.answer(200, b"{}")

        def preupload(self, name: str, revision: str, body: bytes) -> None:
            files = json.loads(body)["files"]
            said = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in files
            ]
            return self.answer(200, json.dumps({"files": [s | {"shouldIgnore": False} for s in said]}).encode())

        def batch(self, wanted: Mapping[str, list[dict[str, str]]]) -> None:
            said = [
                o | {"actions": {"upload": {"href": f"{address}/objects/{o['oid']}", "header": {}}}}
                for o in wanted["objects"]
            ]
            return self.answer(200, json.dumps({"transfer": "basic", "objects": said}).encode())

        def commit(self, name: str, revision: str, body: bytes) -> None:
            assert into is not None
            folder = into / (name if revision == "main" else f"{name}@{revision}")
            for line in map(json.loads, body.splitlines()):
                key, value = line["key"], line["value"]
                if key == "header":
                    (folder / ".message").write_text(value["summary"])
                    continue
                if key == "deletedFile":
                    (folder / value["path"]).unlink()
                    continue
                content = base64.b64decode(value["content"]) if key == "file" else objects[value["oid"]]
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(content)
            said = {"commitUrl": f"{address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
            return self.answer(200, json.dumps(said).encode())

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
    address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        yield {"HF_ENDPOINT": address, **quiet}, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _blob(path: Path) -> str:
    """What git calls a file's content."""
    body = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
