"""The server as tests hold it: started as a process, told what to do, looked into."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import warm
from tests.processes import LIMIT_S
from tests.wandb_server.faults import Action, Fault
from tests.wandb_server.records import Artifact, Collection, Run, View
from tests.wandb_server.request_log import Entry, read_log
from tests.wandb_server.store import Store, json_text
from tests.wandb_server.views import ArtifactView, RunView, json_of

KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "tester"
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def start_server(folder: Path, port: int = 0, capture: bool = False) -> "ServerHandle":
    """A running server that keeps everything in `folder`; close it, or use it in a `with` block."""
    handle = ServerHandle(folder, port, capture)
    handle.start()
    return handle


class ServerHandle:
    """One server, over all the processes that it lives through: its URL and its folder stay the same."""

    def __init__(self, folder: Path, port: int = 0, capture: bool = False) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port
        self._capture = capture
        self._process: subprocess.Popen[str] | None = None
        self._store: Store | None = None
        self._num_environments = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, or start again on the same port with all that was kept; faults and rejected keys are forgotten."""
        assert self._process is None, "the server is running"
        command = [sys.executable, str(Path(__file__).parent), "--port", str(self.port), "--dir", str(self.folder)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        with (self.folder / "server.log").open("a") as errors:
            command += ["--capture"] if self._capture else []
            self._process = warm.popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        assert self._process.stdout is not None
        url = self._process.stdout.readline().strip()
        assert url, (self.folder / "server.log").read_text()
        self.port = int(url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """As a power loss would: no time to write anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, sent: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(sent)
        self._process.wait(LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def close(self) -> None:
        self.stop()
        if self._store is not None:
            self._store.close()
            self._store = None
        said = (self.folder / "server.log").read_text()
        assert "Traceback" not in said, said

    def environment(self, key: str = KEY, **others: str) -> dict[str, str]:
        """All variables for a process that uses the SDK against this server, with W&B folders that nobody used before."""
        self._num_environments += 1
        home = self.folder / "clients" / str(self._num_environments)
        folders = {
            f"WANDB_{name}DIR": home / (name.strip("_").lower() or "runs") for name in ("", "CACHE_", "DATA_", "CONFIG_")
        }
        for path in folders.values():
            path.mkdir(parents=True)
        plain = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        return {
            **plain,
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": key,
            "WANDB_ENTITY": ENTITY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_SILENT": "true",
            "WANDB_CONSOLE": "off",
            "WANDB_X_DISABLE_STATS": "true",
            "WANDB_X_DISABLE_MACHINE_INFO": "true",
            "WANDB_X_SAVE_REQUIREMENTS": "false",
            "WANDB_DISABLE_GIT": "true",
            "WANDB_DISABLE_CODE": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            **{name: str(path) for name, path in folders.items()},
            **others,
        }

    def python(self, code: str, environment: Mapping[str, str] | None = None) -> Any:
        """Run `code` as a process of its own against the server; what its last printed line says as JSON."""
        with self.start_python(code, environment) as process:
            try:
                out, err = process.communicate(timeout=LIMIT_S)
            finally:
                process.kill()
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1]) if out.strip() else None

    def start_python(self, code: str, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """`code` as a process with pipes, in a folder of its own; `environment` goes over that of `environment()`."""
        given = {**self.environment(), **(environment or {})}
        pipe = subprocess.PIPE
        streams: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
        return warm.popen([sys.executable, "-c", code], env=given, cwd=given["WANDB_DIR"], **streams)

    def fault(self, action: Action, **settings: Any) -> None:
        """Put a fault in force; `settings` are the fields of Fault."""
        self.control("fault", fault=asdict(Fault(action=action, **settings)))

    def clear(self) -> None:
        """End all faults, accept all keys, let go of whoever waits."""
        self.control("clear")

    def reject_key(self, key: str = "*") -> None:
        """Answer 401 to this key, or to all."""
        self.control("reject_key", key=key)

    def delete_version(self, artifact: ArtifactView) -> None:
        """As if somebody else had deleted it."""
        self.control("delete_version", artifact=artifact.id)

    def purge(self, artifact: ArtifactView, file: str) -> None:
        """The content is gone while the version is still listed."""
        self.control("purge", artifact=artifact.id, file=file)

    def edit_view(self, view: View, spec: str | None) -> None:
        """As if somebody had changed it, or with None deleted it."""
        self.control("edit_view", view=view.id, spec=spec)

    def capture(self, on: bool = True) -> None:
        self._capture = on
        self.control("capture", on=on)

    def control(self, do: str, **settings: Any) -> Mapping[str, Any]:
        """POST /__control; the answer's `faults_met` counts the requests that met a fault since the start."""
        request = urllib.request.Request(
            f"{self.url}/__control", data=json_text({"do": do, **settings}).encode(), method="POST"
        )
        with NO_PROXY.open(request, timeout=LIMIT_S) as answer:
            return json_of(answer.read().decode())

    def faults_met(self) -> int:
        return int(self.control("status")["faults_met"])

    def faults_left(self) -> list[str]:
        """Those in force, in words."""
        return list(self.control("status")["faults_left"])

    def store(self) -> Store:
        self._store = self._store or Store(self.folder)
        return self._store

    def runs(self, project: str = "*") -> list[RunView]:
        """In the order in which they were made."""
        return [RunView(self.store(), run) for run in self.store().all(Run) if project in ("*", run.project)]

    def run(self, name: str) -> RunView:
        """By the SDK's run id."""
        return next(view for view in self.runs() if view.id == name)

    def views(self) -> list[View]:
        """Saved views in the order in which they were made."""
        return self.store().all(View)

    def artifacts(self, type: str = "*", collection: str = "*") -> list[ArtifactView]:
        """Committed versions in the order in which they were made."""
        store = self.store()
        homes = {home.key: home for home in store.all(Collection)}
        views = [ArtifactView(store, a, homes[a.collection]) for a in store.all(Artifact) if a.state == "COMMITTED"]
        return [view for view in views if type in ("*", view.type) and collection in ("*", view.collection)]

    def artifact(self, name: str) -> ArtifactView:
        """By `collection:vN` or `collection:alias`."""
        collection, _, version = name.partition(":")
        found = [view for view in self.artifacts(collection=collection) if version in (view.version, *view.aliases)]
        assert len(found) == 1, f"{name}: {len(found)} versions"
        return found[0]

    def requests(self, route: str = "*", operation: str = "*") -> list[Entry]:
        """The log, the oldest first, over all starts."""
        return [e for e in read_log(self.folder) if route in ("*", e.route) and operation in ("*", e.operation)]

    def downloads(self, artifact: ArtifactView) -> list[Entry]:
        """Requests for the contents of its files (not for its manifest)."""
        return [e for e in self.requests() if e.artifact == artifact.id and e.route in ("file", "artifacts_v2")]

    def bytes_downloaded(self, artifact: ArtifactView) -> int:
        """Bytes of file contents sent out for this version; see Entry for clients that hang up early."""
        return sum(entry.response_bytes for entry in self.downloads(artifact) if entry.status == 200)

    def captured(self) -> bytes:
        """Every byte of every captured request, but for the values of Authorization headers."""
        path = self.folder / "capture.bin"
        return path.read_bytes() if path.is_file() else b""
