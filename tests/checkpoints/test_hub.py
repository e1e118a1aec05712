"""`hf://owner/name`: checkpoints of a hub on this machine, and what cannot be opened."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.command import refusal
from tests.helpers.saved_checkpoint import make
from torch_caption import CheckpointError, ConfigError, load
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import hub

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN = """
import sys
from torch_caption import TorchCaptionError, load
for name in sys.argv[1:]:
    try:
        print(load(name, device="cpu").vocabulary.words[-1])
    except TorchCaptionError as error:
        print(error)
"""


class Hub(http.server.ThreadingHTTPServer):
    """Answers for /owner/name/resolve/REVISION/FILE, of a repository with the branches main and small."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        match = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/([\w.]+)", self.path)
        fault = "RepoNotFound" if match is None or match[1] not in ("owner/name", "owner/empty") else None
        if match is not None and fault is None and match[2] not in ("main", "small", COMMIT):
            fault = "RevisionNotFound"
        elif match is not None and fault is None and match[1] == "owner/empty":
            fault = "EntryNotFound"
        self.send_response(404 if fault else 200)
        if fault:
            self.send_header("X-Error-Code", fault)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(self.server.content).hexdigest()}"')
        self.send_header("Content-Length", "0" if fault else str(len(self.server.content)))
        self.end_headers()
        if self.command == "GET" and not fault:
            self.wfile.write(self.server.content)

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    checkpoints.save(tmp_path / "best.safetensors", make(random={}))
    server = Hub((tmp_path / "best.safetensors").read_bytes())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def call(args: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python program with a cache of the hub of its own. huggingface_hub reads its settings when it is imported."""
    settings = {"HF_HOME": str(folder / "hub"), "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False
    )


def test_a_repository_is_opened_and_kept(server: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    names = ["owner/name", "owner/name@small", "owner/other", "owner/name@large", "owner/empty", "owner/na..me"]
    done = call(["-c", OPEN, *(f"hf://{name}" for name in names)], tmp_path, HF_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:5] == [
        "circle",
        "circle",
        "hf://owner/other: no such repository, or it is private or gated; for one of yours use `hf auth login`",
        "hf://owner/name@large: the repository has no branch, tag or commit large",
        "hf://owner/empty: the repository has no best.safetensors; `share` writes one",
    ]
    assert done.stdout.splitlines()[5].startswith("hf://owner/na..me: best.safetensors cannot be downloaded: ")
    assert [request for request in server.requests if request.startswith("GET")] == [
        "GET /owner/name/resolve/main/best.safetensors"
    ]
    server.requests.clear()
    offline = call(["-c", OPEN, "hf://owner/name", "hf://owner/new"], tmp_path, HF_HUB_OFFLINE="1")
    message = "hf://owner/new: the hub cannot be reached, and best.safetensors is not in its cache"
    assert (offline.stdout.splitlines(), server.requests) == (["circle", message], [])


def test_a_command_opens_a_repository(server: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    done = call(["sample.py", "--checkpoint", "hf://owner/name", "x.png"], tmp_path, HF_ENDPOINT=server.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*best\.safetensors: has no recipe of its features, .*\n", done.stderr)


@pytest.mark.parametrize("name", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://a/b c", "hf://a/b@x@y"])
def test_names_of_another_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="not the name of a repository"):
        hub.download(name, "x")
    assert refusal(["evaluate", name], capsys).startswith(f"error: {name}: not the name of a repository; the form is ")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ConfigError, match=r"^hf://a/b: needs huggingface_hub: `python -m pip install huggingface_hub`$"
    ):
        load("hf://a/b")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "hf:" / "a")
