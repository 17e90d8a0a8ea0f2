"""A Hub on the loopback interface: what huggingface_hub's client asks of the real one to create, push, read and pin.

`with Hub({"secret": "user"}) as hub:` serves at `hub.endpoint`. Repositories live in memory, as commits of files; large
ones go through the LFS batch endpoint, in parts where they are larger than `PART`. `hub.fail(...)` breaks requests.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".model")  # as in the .gitattributes of a new repository
PART = 64 * 1024
MODEL, REVISION = r"/api/models/(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"


class Refusal(Exception):
    """An answer that is no success: status, the Hub's error code, message."""

    def __init__(self, status, message, code=None, headers=None, **fields):
        super().__init__(status, message, code)
        self.status, self.message, self.code, self.fields, self.headers = status, message, code, fields, headers or {}


class Repository:
    """Commits of files, branches that name them: {path: bytes} for small files, {path: ("lfs", sha256)} for large."""

    def __init__(self, name, owner, private):
        self.name, self.owner, self.private = name, owner, private
        self.commits, self.branches = {}, {}
        self.commit("main", {})

    def commit(self, branch, files):
        parent = self.branches.get(branch)
        content = f"{parent}{len(self.commits)}{sorted(files)}"
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def find(self, revision):
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


class Hub:
    """The state, and the server around it."""

    def __init__(self, users):
        self.users, self.repositories, self.large, self.parts = users, {}, {}, {}
        self.requests, self.faults, self.lock = [], [], threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        # Another host, as the storage behind the real Hub is: clients do not carry their token there.
        self.storage = f"http://localhost:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method, pattern, answer, times=1):
        """The next `times` requests like this get the status `answer`, or no answer at all for "drop"."""
        self.faults.append([method, re.compile(pattern), answer, times])

    def fault(self, method, path):
        for fault in self.faults:
            if fault[0] == method and fault[1].search(path) and fault[3] > 0:
                fault[3] -= 1
                return fault[2]

    def files(self, name, revision="main"):
        """{path: content} of a repository, large files included."""
        repository = self.repositories[name]
        found = repository.commits[repository.find(revision)]
        return {path: self.large[kept[1]] if isinstance(kept, tuple) else kept for path, kept in found.items()}

    def repository(self, name, token, write=False):
        found, user = self.repositories.get(name), self.users.get(token)
        if token and user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if found is None or (found.private and user != found.owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound" if user else None)
        if write and user != found.owner:
            raise Refusal(403, f"You don't have the rights to write to {name}")
        return found


def create(hub, call, body, **_):
    user = hub.users.get(call.token)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    owner = body.get("organization") or user
    if owner != user:
        raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
    name = f"{owner}/{body['name']}"
    if name in hub.repositories:
        raise Refusal(409, "You already created this model repo", url=f"{hub.endpoint}/{name}")
    private = body.get("private") or body.get("visibility") == "private"
    hub.repositories[name] = Repository(name, owner, private)
    return {"url": f"{hub.endpoint}/{name}", "id": name, "name": name}


def whoami(hub, call, **_):
    if call.token not in hub.users:
        raise Refusal(401, "Invalid username or password.")
    return {"type": "user", "name": hub.users[call.token], "orgs": []}


def validate_yaml(hub, call, body, **_):
    found = re.match(r"---\n(.*?)\n---\n", body["content"], flags=re.DOTALL)
    try:
        fields = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise Refusal(400, f"bad front matter: {error}") from error
    return {"errors": [], "warnings": [] if fields else [{"message": "empty or missing yaml metadata"}]}


def preupload(hub, call, body, name, revision):
    files = hub.repository(name, call.token, write=True)
    present = files.commits[files.find(revision)]
    answer = []
    for file in body["files"]:
        kept = present.get(file["path"])
        oid = kept[1] if isinstance(kept, tuple) else blob_id(kept) if kept is not None else None
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answer}


def batch(hub, call, body, name):
    hub.repository(name, call.token, write=True)
    objects = []
    for wanted in body["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in hub.large:
            objects.append({"oid": oid, "size": size})
            continue
        upload = {"href": f"{hub.storage}/storage/{oid}", "header": {}}
        if size > PART:
            count = -(-size // PART)
            upload["header"] = {str(i + 1): f"{hub.storage}/storage/{oid}/{i + 1}" for i in range(count)}
            upload["header"]["chunk_size"] = str(PART)
            upload["href"] = f"{hub.endpoint}/complete/{oid}"
        verify = {"href": f"{hub.endpoint}/{name}.git/verify", "header": {}}
        objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
    return {"transfer": "multipart", "objects": objects}


def store(hub, call, oid, part=None, **_):
    content = call.content
    if part is not None:
        hub.parts[oid, int(part)] = content
    else:
        keep(hub, oid, content)
    return b"", {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}


def complete(hub, call, body, oid):
    keep(hub, oid, b"".join(hub.parts.pop((oid, part["partNumber"])) for part in body["parts"]))
    return {}


def keep(hub, oid, content):
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, "the content is not what its name says")
    hub.large[oid] = content


def verify(hub, call, body, name):
    if len(hub.large.get(body["oid"], b"")) != body["size"]:
        raise Refusal(404, "no such object")
    return {}


def commit(hub, call, name, revision, **_):
    repository = hub.repository(name, call.token, write=True)
    files = dict(repository.commits[repository.find(revision)])
    for line in call.content.splitlines():
        entry = json.loads(line)
        kind, value = entry["key"], entry["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            if value["oid"] not in hub.large:
                raise Refusal(400, f"{value['path']} was never uploaded")
            files[value["path"]] = ("lfs", value["oid"])
        elif kind == "deletedFile":
            files.pop(value["path"], None)
    sha = repository.commit(revision, files)
    return {"commitUrl": f"{hub.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True}


def branch(hub, call, body, name, revision):
    repository = hub.repository(name, call.token, write=True)
    if revision in repository.branches:
        raise Refusal(409, "Reference already exists")
    repository.branches[revision] = repository.find(body.get("startingPoint") or "main")
    return {}


def info(hub, call, name, revision="main", **_):
    repository = hub.repository(name, call.token)
    sha = repository.find(revision)
    siblings = [{"rfilename": path} for path in repository.commits[sha]]
    return {"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}


def entry(hub, path, kept):
    if not isinstance(kept, tuple):
        return {"type": "file", "path": path, "size": len(kept), "oid": blob_id(kept)}
    size = len(hub.large[kept[1]])
    lfs = {"oid": kept[1], "size": size, "pointerSize": 134}
    return {"type": "file", "path": path, "size": size, "oid": blob_id(kept[1].encode()), "lfs": lfs}


def tree(hub, call, name, revision, folder=None, **_):
    repository = hub.repository(name, call.token)
    files = repository.commits[repository.find(revision)]
    prefix, recursive = f"{folder}/" if folder else "", call.query.get("recursive") in (["true"], ["True"], ["1"])
    inside = [path for path in files if path.startswith(prefix)]
    if folder and not inside:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    shown = [entry(hub, path, files[path]) for path in inside if recursive or "/" not in path[len(prefix) :]]
    folders = {prefix + path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]}
    return shown + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]


def refs(hub, call, name, **_):
    branches = hub.repository(name, call.token).branches
    rows = [{"name": key, "ref": f"refs/heads/{key}", "targetCommit": sha} for key, sha in branches.items()]
    return {"branches": rows, "converts": [], "tags": []}


def resolve(hub, call, name, revision, path, **_):
    repository = hub.repository(name, call.token)
    sha = repository.find(revision)
    kept = repository.commits[sha].get(path)
    if kept is None:
        # The client remembers by the commit that there is no such file.
        raise Refusal(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": sha})
    if not isinstance(kept, tuple):
        return kept, {"X-Repo-Commit": sha, "ETag": f'"{blob_id(kept)}"'}
    size = str(len(hub.large[kept[1]]))
    linked = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{kept[1]}"', "X-Linked-Size": size}
    return b"", linked | {"Location": f"{hub.storage}/storage/{kept[1]}"}


def fetch(hub, call, oid, **_):
    if call.token:
        raise Refusal(400, "a token does not belong here")
    content = hub.large[oid]
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    return content[int(found[1]) :] if found else content, {"ETag": f'"{oid}"'}


def blob_id(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


ROUTES = [
    ("POST", r"/api/repos/create", create),
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"{MODEL}/preupload/{REVISION}", preupload),
    ("POST", rf"{MODEL}/commit/{REVISION}", commit),
    ("POST", rf"{MODEL}/branch/{REVISION}", branch),
    ("GET", rf"{MODEL}/refs", refs),
    ("GET", rf"{MODEL}/tree/{REVISION}(?:/(?P<folder>.+))?", tree),
    ("GET", rf"{MODEL}(?:/revision/{REVISION})?", info),
    ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
    ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/verify", verify),
    ("POST", r"/complete/(?P<oid>\w+)", complete),
    ("PUT", r"/storage/(?P<oid>\w+)(?:/(?P<part>\d+))?", store),
    ("GET", r"/storage/(?P<oid>\w+)", fetch),
    ("GET", rf"/(?P<name>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)", resolve),
]


class Handler(BaseHTTPRequestHandler):
    """One request: its fault if it has one, else its route."""

    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *args):
        pass

    def handle_request(self):
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.content = self.read_content()
        self.hub.requests.append((self.command, path))
        fault = self.hub.fault(self.command, path)
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        try:
            if fault is not None:
                raise Refusal(fault, "the server was told to fail")
            with self.hub.lock:
                answer = self.route("GET" if self.command == "HEAD" else self.command, path)
        except Refusal as refusal:
            extra = refusal.headers | ({"X-Error-Code": refusal.code} if refusal.code else {})
            content = json.dumps({"error": refusal.message} | refusal.fields).encode()
            self.answer(refusal.status, content, extra | {"X-Error-Message": refusal.message})
        else:
            content, extra = answer if isinstance(answer, tuple) else (json.dumps(answer).encode(), {})
            self.answer(302 if "Location" in extra else 200, content, extra)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self, method, path):
        for known, pattern, handler in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and known == method:
                values = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                as_json = method == "POST" and handler is not commit
                body = {"body": json.loads(self.content or b"{}")} if as_json else {}
                return handler(self.hub, self, **body, **values)
        raise Refusal(404, f"no such route: {method} {path}")

    def read_content(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, status, content, extra):
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
