"""What a manifest says of a version, with no server at all."""

import base64
import contextlib
import gzip
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import xxhash

from dr_validate.errors import CheckpointError, Stopped
from dr_validate.files import interruptible
from dr_validate.source.wandb_client.api import host_of
from dr_validate.source.wandb_client.http import Downloads, FileOutage
from dr_validate.source.wandb_client.versions import ManifestEntry, has_digest, read_manifest

PLAIN = ["config.json", "model.safetensors", "tokenizer.json"]
TOWERS = [f"{tower}/{name}" for tower in ("query_model", "passage_model") for name in ("config.json", "model.safetensors")]


def manifest(names: Sequence[str], **changes: Any) -> dict[str, Any]:
    return {"contents": {name: {"digest": f"digest of {name}", "size": 10, **changes} for name in names}}


@pytest.mark.parametrize(
    "names",
    [
        PLAIN,
        ["adapter_config.json", "adapter_model.safetensors"],
        [*PLAIN, "modules.json", "1_Pooling/config.json"],
        [*PLAIN, "modules.json", "pooling_of_ours/config.json"],
        ["modules.json", "0_Transformer/config.json", "0_Transformer/model.safetensors", "1_Pooling/config.json"],
        TOWERS,
    ],
    ids=["plain", "adapter", "modules", "named-modules", "module-folders", "towers"],
)
def test_everything_that_a_checkpoint_needs_is_wanted_and_nothing_else(names: list[str]) -> None:
    beside = ["optimizer.pt", "training_args.bin", "README.md", "checkpoint-5/config.json", "checkpoint-5/model.safetensors"]
    found = read_manifest(manifest([*names, *beside]))
    assert [entry.path for entry in found.files] == sorted(names) and found.lacks == ""
    assert found.num_bytes == 10 * len(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json", "pytorch_model.bin", "optimizer.pt"], "weights only as a pickle (pytorch_model.bin)"),
        (["config.json", "optimizer.pt", "training_args.bin"], "weights (*.safetensors) are not there"),
        (["model.safetensors", "tokenizer.json"], "a bare state dict"),
        ([*PLAIN, "modules.json"], "1_Pooling/"),
        (TOWERS[:2], "query_model/ is there, but not the other tower"),
        (TOWERS[:3], "passage_model/: weights"),
        ([*PLAIN, *(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))], "two sets of weights: model.safetensors and"),
        ([*PLAIN, "adapter_config.json", "adapter_model.safetensors"], "model.safetensors and adapter_model.safetensors"),
        ([], "weights"),
        ([*PLAIN, "/tmp/x"], "'/tmp/x', which is no path inside a folder"),
        ([*PLAIN, "a/../../x.json"], "no path inside a folder"),
        ([f"{n}.json" for n in range(10_001)], "10,001 files"),
    ],
)
def test_what_a_version_lacks_is_said(names: list[str], said: str) -> None:
    assert said in read_manifest(manifest(names)).lacks


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "no contents"),
        ({"contents": []}, "no contents"),
        ({"contents": {"config.json": None}}, "no size or no digest for config.json"),
        (manifest(PLAIN, size=-1), "no size"),
        (manifest(PLAIN, digest=None), "no digest"),
        (manifest(PLAIN, extra={"alg": "CRC"}), "digest 'CRC'"),
    ],
)
def test_nonsense_is_a_reason_and_not_a_crash(document: Any, said: str) -> None:
    assert said in read_manifest(document).lacks


def test_the_digest_is_that_of_the_wanted_files_alone() -> None:
    first = read_manifest(manifest(PLAIN)).digest
    assert first == read_manifest(manifest([*reversed(PLAIN), "optimizer.pt"])).digest
    assert first != read_manifest(manifest([*PLAIN, "tokenizer_config.json"])).digest
    assert first != read_manifest(manifest(PLAIN, digest="another")).digest


CONTENT = bytes(range(256)) * 10


class Handler(BaseHTTPRequestHandler):
    """`/moved` leads to `/file` under another name of this host; `/busy` asks once to wait 4 s; `/slow` sends a byte at a time,
    `passes_s` apart by the clock of a test; `/loop` leads to itself, `/endless` does not end, `/bomb` is packed well."""

    keys: ClassVar[list[str | None]] = []
    busy: ClassVar[list[str]] = []
    clock_ahead_s: ClassVar[list[float]] = [0.0]
    passes_s: ClassVar[float] = 0.0

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        if self.path in ("/slow", "/endless", "/bomb"):
            with contextlib.suppress(OSError):  # nobody listens any more
                self._send_unkindly()
            return
        if self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.headers['Host'].rpartition(':')[2]}/file")
        elif self.path == "/busy" and not self.busy:
            self.busy.append(self.path)
            self.send_response(429)
            self.send_header("Retry-After", "4")
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
            return
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_unkindly(self) -> None:
        self.send_response(200)
        if self.path == "/bomb":
            self.send_header("Content-Encoding", "gzip")
        if self.path == "/slow":
            self.send_header("Content-Length", "5000")
        self.end_headers()
        if self.path == "/bomb":
            self.wfile.write(gzip.compress(bytes(64 << 20)))
        for _ in range(2000 if self.path == "/slow" else 0):  # then it breaks off
            self.wfile.write(b"x")
            time.sleep(0.002)
            self.clock_ahead_s[0] += self.passes_s
        while self.path == "/endless":
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.keys.clear()
    Handler.busy.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/file"
        server.shutdown()
        thread.join()


def test_a_key_in_netrc_is_for_no_store_and_for_none_that_it_leads_to(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("".join(f"machine {m} login api password k\n" for m in ("127.0.0.1", "localhost")))
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    assert Downloads(30).content(lambda: url) == CONTENT
    assert Downloads(30).content(lambda: url.replace("/file", "/moved")) == CONTENT
    assert Handler.keys == [None] * 3


def test_a_wait_that_a_store_asks_for_is_kept_where_it_is_longer_than_our_own(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("dr_validate.source.wandb_client.http.time.sleep", waits.append)
    assert Downloads(30).content(lambda: url.replace("/file", "/busy")) == CONTENT
    assert waits == [4.0]


@pytest.mark.parametrize("passes_s", [0, 100])
def test_a_body_that_trickles_ends_by_a_least_rate_or_a_total_time(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes_s: float
) -> None:
    clock = time.monotonic
    monkeypatch.setattr(Handler, "passes_s", passes_s)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + Handler.clock_ahead_s[0])
    slow = url.replace("/file", "/slow")
    entry = ManifestEntry(path="f", size=5000, digest="d", algorithm="md5")
    if passes_s:
        with pytest.raises(FileOutage, match=r"too slow: of f it sent [\d,]+ bytes in \d+ s, less than 10,000 a second"):
            Downloads(600).file(entry, lambda: slow, tmp_path)
        with pytest.raises(FileOutage, match=r"too slow: of its manifest it sent [\d,]+ bytes in 50 s, and not all"):
            Downloads(1e9, total_s=50).content(lambda: slow)
    else:
        asked: list[int] = []

        def check() -> None:
            asked.append(1)
            if len(asked) == 3:
                raise Stopped("the run ends")

        with pytest.raises(Stopped), interruptible(check):
            Downloads(600).file(entry, lambda: slow, tmp_path)


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("/endless", CheckpointError, "more than the 2,560 bytes of the manifest"),
        ("/bomb", CheckpointError, "more than the 2,560 bytes of the manifest"),
        ("/loop", FileOutage, "TooManyRedirects"),
    ],
)
def test_a_body_without_end_and_a_way_without_end_end(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr("dr_validate.source.wandb_client.http.PAUSES_S", (0.0, 0.0))
    entry = ManifestEntry(path="f", size=len(CONTENT), digest="d", algorithm="md5")
    with pytest.raises(error, match=said):
        Downloads(600).file(entry, lambda: url.replace("/file", place), tmp_path)
    assert (tmp_path / "f").stat().st_size <= len(CONTENT) if place != "/loop" else not (tmp_path / "f").read_bytes()


def test_a_login_in_a_url_is_not_shown() -> None:
    reference = {"ref": "https://user:secret@store.org:8080/a/b.safetensors?signature=secret"}
    found = read_manifest(manifest(["config.json", "model.safetensors"], **reference))
    assert found.references == ("https://store.org:8080/a/b.safetensors",)
    assert "secret" in found.files[0].reference  # to be fetched with
    assert host_of("https://user:secret@store.org:8080/a") == "https://store.org:8080"


def test_of_each_kind_of_references_one_is_shown_whatever_comes_first() -> None:
    places = ["https://user:secret@h/1", "S3://bucket/2", "s3://bucket/3", "file:///4", "https://[secret", "nothing", 5]
    names = ["config.json", *(f"model-0000{n}-of-00006.safetensors" for n in range(1, 7))]
    document = manifest(names)
    for name, place in zip(names, places, strict=True):
        document["contents"][name]["ref"] = place
    found = read_manifest(document)
    assert found.references == ("https://h/1", "s3://bucket/2", "file:///4", "nothing")
    document["contents"] = {name: {**entry, "ref": "https://[secret"} for name, entry in document["contents"].items()}
    assert read_manifest(document).references == ("https:...",)


@pytest.mark.parametrize("algorithm", ["MD5", "XXH128"])
def test_a_file_is_checked_with_the_digest_that_the_manifest_uses(
    url: str, tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dr_validate.source.wandb_client.http.PAUSES_S", (0.0, 0.0))
    digests = {"MD5": hashlib.md5(CONTENT).digest(), "XXH128": xxhash.xxh128(CONTENT).digest()}
    good = base64.b64encode(digests[algorithm]).decode()
    (entry,) = _only({"digest": good, "size": len(CONTENT), "extra": {"alg": algorithm}})
    Downloads(5).file(entry, lambda: url, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == CONTENT
    (bad,) = _only({"digest": good[::-1], "size": len(CONTENT), "extra": {"alg": algorithm}})
    with pytest.raises(CheckpointError, match=f"another {algorithm.lower()} than"):
        Downloads(5).file(bad, lambda: url, tmp_path)
    (short,) = _only({"digest": good, "size": 5, "extra": {"alg": algorithm}})
    with pytest.raises(CheckpointError, match="more than the 5 bytes"):
        Downloads(5).file(short, lambda: url, tmp_path)


def _only(given: dict[str, Any]) -> tuple[ManifestEntry, ...]:
    return read_manifest({"contents": {"model.safetensors": given}}).files


@pytest.mark.parametrize("algorithm", [hashlib.md5, xxhash.xxh128])
def test_a_manifest_is_known_by_the_digest_of_its_version(algorithm: Any) -> None:
    document = manifest(PLAIN)
    lines = "".join(f"{name}:digest of {name}\n" for name in PLAIN)  # sorted, as the SDK has them
    digest = algorithm(b"wandb-artifact-manifest-v1\n" + lines.encode()).hexdigest()
    assert has_digest(document, digest) and not has_digest(None, digest) and not has_digest({"contents": []}, digest)
    document["contents"]["config.json"]["digest"] = "another"
    assert not has_digest(document, digest)
