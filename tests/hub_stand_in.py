"""A server with the part of the Hugging Face hub's interface that uploads and downloads models."""

import base64
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories by name: their commits, and the commit of every branch. Large files go through LFS, as there."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.objects: Files = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.refuses_uploads = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repository: str, revision: str) -> tuple[str, Files]:
        """**Raises:** `KeyError` if there are none."""
        commit = self.branches[repository].get(revision, revision)
        return commit, self.commits[repository][commit]

    def create(self, repository: str, private: bool) -> None:
        if repository not in self.commits:
            self.commits[repository], self.branches[repository] = {}, {}
            self.private[repository] = private
            self.commit(repository, "main", {})

    def commit(self, repository: str, branch: str, files: Files) -> str:
        before = self.commits[repository].get(self.branches[repository].get(branch, ""), {})
        oid = hashlib.sha1(f"{repository} {len(self.commits[repository])}".encode()).hexdigest()
        self.commits[repository][oid] = before | files
        self.branches[repository][branch] = oid
        return oid


class _Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get(send_body=False)

    def do_GET(self) -> None:
        self._get(send_body=True)

    def do_PUT(self) -> None:
        oid = self.path.removeprefix("/lfs/")
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            return self._answer(400, {"error": "another hash"})
        self.server.objects[oid] = content
        return self._answer(200, {})

    def do_POST(self) -> None:
        hub, parts, body = self.server, self._parts(), self._body()
        if hub.refuses_uploads:
            return self._answer(403, {"error": "You may not write here."})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            hub.create(repository, asked.get("private") is True or asked.get("visibility") == "private")
            return self._answer(200, {"url": f"{hub.address}/{repository}", "id": repository})
        if parts == ["api", "validate-yaml"]:  # of the card
            return self._answer(200, {"errors": [], "warnings": []})
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        repository, action = "/".join(parts[2:4]), parts[4]
        if action == "branch":
            branches = hub.branches[repository]
            branches.setdefault(parts[5], branches["main"])
            return self._answer(200, {})
        if action == "preupload":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for each in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        files: Files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
        oid = hub.commit(repository, parts[5], files)
        return self._answer(
            200, {"commitUrl": f"{hub.address}/{repository}/commit/{oid}", "commitOid": oid, "success": True}
        )

    def _get(self, *, send_body: bool) -> None:
        hub, parts = self.server, self._parts()
        hub.requests.append(self.path)
        try:
            if parts[0] == "api":
                repository = "/".join(parts[2:4])
                commit, files = hub.files(repository, parts[5] if len(parts) > 5 else "main")
                if len(parts) > 4 and parts[4] == "tree":
                    return self._answer(200, [_entry(name, content) for name, content in files.items()])
                siblings = [{"rfilename": name} for name in files]
                return self._answer(200, {"id": repository, "sha": commit, "siblings": siblings})
            repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            commit, files = hub.files(repository, revision)
            content = files[name]
        except KeyError:
            kind = "EntryNotFound" if parts[0] != "api" and "/".join(parts[:2]) in hub.commits else "RepoNotFound"
            return self._answer(404, {"error": "not found"}, {"X-Error-Code": kind}, send_body=send_body)
        entry = _entry(name, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        return self._answer(200, content, headers, send_body=send_body)

    def _parts(self) -> list[str]:
        return [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(self.path).path.strip("/").split("/")]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self, status: int, content: Any, headers: dict[str, str] | None = None, *, send_body: bool = True
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """What a listing says of a file: git's hash of it, and for a large one SHA-256."""
    entry = {"type": "file", "path": name, "size": len(content)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
