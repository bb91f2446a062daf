"""Requests in, answers out, no sockets: GraphQL, the file stream, contents, and the control endpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.wandb_server import run_changes
from tests.wandb_server.artifact_edits import forget_artifact
from tests.wandb_server.artifact_nodes import file_blob, hex_of
from tests.wandb_server.faults import Fault, Faults
from tests.wandb_server.graphql import execute
from tests.wandb_server.graphql_parse import GraphQLError, parse
from tests.wandb_server.nodes import Context
from tests.wandb_server.queries import root
from tests.wandb_server.records import Artifact, Run, View
from tests.wandb_server.request_log import Request, RequestLog
from tests.wandb_server.run_nodes import run_key
from tests.wandb_server.store import Store

log = logging.getLogger(__name__)
JSON = {"Content-Type": "application/json"}
SHARED = "x-wandb-use-async-filestream"
SHARED_CLIENT = "x-wandb-async-client-id"
CREDENTIALS_NEEDED = ("graphql", "file_stream", "artifacts_v2")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=lambda: dict(JSON))


def refusal(status: int, message: str) -> Answer:
    body = {"errors": [{"message": message}], "error": message}
    return Answer(status, json.dumps(body).encode())


def route_of(method: str, path: str) -> str:
    """The name under which faults and the log know a path."""
    if path == "/graphql":
        return "graphql"
    if path.startswith("/files/") and path.endswith("/file_stream"):
        return "file_stream"
    if path.startswith("/storage/"):
        kinds = {"files": "file", "manifests": "manifest", "runs": "run_file"}
        return "upload" if method == "PUT" else kinds.get(path.split("/")[2], "other")
    return "artifacts_v2" if path.startswith("/artifactsV2/") else "other"


class App:
    """The server without its sockets; what it keeps lies in `folder`."""

    def __init__(self, folder: Path, capturing: bool = False) -> None:
        self.store = Store(folder)
        self.faults = Faults()
        self.log = RequestLog(folder, capturing)
        self.rejected: set[str] = set()

    def answer(self, request: Request) -> Answer:
        """What W&B would say."""
        if request.route in CREDENTIALS_NEEDED and not self._welcome(request):
            return refusal(401, "user is not logged in")
        if request.route == "graphql":
            return self._graphql(request)
        if request.route == "file_stream":
            return self._file_stream(request)
        if request.route == "upload":
            self.store.write_blob(request.path.removeprefix("/storage/"), request.body)
            return Answer(200, b"", {})
        if request.route == "artifacts_v2":
            return self._content(file_blob(*request.path.split("/")[-3:-1]))
        if request.path.startswith("/storage/"):
            return self._content(request.path.removeprefix("/storage/"))
        return refusal(404, f"no route {request.path}")

    def _welcome(self, request: Request) -> bool:
        return bool(request.key) and request.key not in self.rejected and "*" not in self.rejected

    def _graphql(self, request: Request) -> Answer:
        asked = json.loads(request.body)
        context = Context(self.store, f"http://{request.headers['host']}")
        try:
            with self.store.transaction():
                document = parse(asked["query"])
                node = root(context, shared=request.headers.get(SHARED) == "true")
                data = execute(document, asked.get("variables") or {}, node)
        except GraphQLError as problem:
            log.info("%s: %s", request.operation, problem)
            return Answer(200, json.dumps({"data": None, "errors": [{"message": str(problem)}]}).encode())
        return Answer(200, json.dumps({"data": data}).encode())

    def _file_stream(self, request: Request) -> Answer:
        entity, project, name = request.path.split("/")[2:5]
        with self.store.transaction():
            run = self.store.get(Run, run_key(entity, project, name))
            if run is None:
                return refusal(404, f"run {name} not found")
            client = request.headers.get(SHARED_CLIENT, "")
            said = run_changes.receive_stream(self.store, run, json.loads(request.body), client)
        return Answer(200, json.dumps(said).encode())

    def _content(self, blob: str) -> Answer:
        path = self.store.blob(blob)
        if not path.is_file():
            return refusal(404, f"no content {blob}")
        return Answer(200, path.read_bytes(), {"Content-Type": "application/octet-stream"})

    def control(self, order: Mapping[str, Any]) -> Answer:
        """POST /__control `{"do": ..., ...}`; what can be done is in `control` of the Server of server.py."""
        do = order["do"]
        if do == "fault":
            self.faults.add(Fault.from_json(order["fault"]))
        elif do == "clear":
            self.faults.clear()
            self.rejected.clear()
        elif do == "reject_key":
            self.rejected.add(order["key"])
        elif do == "capture":
            self.log.capturing = order["on"]
        elif do in ("delete_version", "purge"):
            self._damage(do, order)
        elif do == "edit_view":
            self._edit_view(order)
        elif do != "status":
            return refusal(400, f"cannot do {do!r}")
        return Answer(200, json.dumps({"faults_met": self.faults.num_taken, "faults_left": self.faults.left}).encode())

    def _edit_view(self, order: Mapping[str, Any]) -> None:
        with self.store.transaction():
            view = self.store.by_id(View, order["view"])
            assert view is not None, order
            if order["spec"] is None:
                self.store.delete(view)
            else:
                view.spec = order["spec"]
                self.store.put(view)

    def delete_version(self, name: str) -> None:
        """Delete the version that is `collection:vN`, wherever it is, if it is there still."""
        collection, _, number = name.partition(":v")
        with self.store.transaction():
            for artifact in self.store.all(Artifact):
                if artifact.collection.endswith(f"/{collection}") and artifact.version == int(number):
                    forget_artifact(self.store, artifact)

    def _damage(self, do: str, order: Mapping[str, Any]) -> None:
        with self.store.transaction():
            artifact = self.store.by_id(Artifact, order["artifact"])
            assert artifact is not None, order
            if do == "delete_version":
                forget_artifact(self.store, artifact)
                return
            entry = artifact.contents[order["file"]]
            blob = file_blob(entry.get("birthArtifactID") or artifact.id, hex_of(entry["digest"]))
            self.store.blob(blob).unlink(missing_ok=True)
