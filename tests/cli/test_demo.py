"""The web demo, in a headless Chromium where gradio, playwright and Chromium are installed."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.command import refusal
from tests.helpers.demo_page import CELLS, explainer
from tests.helpers.hostile_photos import made, photo
from torch_caption.checkpoints import format as checkpoints
from torch_caption.cli import demo
from torch_caption.cli.demo import DemoConfig, captions_html, chance, maps, open_explainer, words_html
from torch_caption.config import TrainConfig
from torch_caption.encoders import extractor as recipes
from torch_caption.inference.explain import BEST_FIVE, Explanation, Guess, Word, explain
from torch_caption.io.images import load_image
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.scenes import dataset as scenes

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]

SHOWS = """([shares, words]) => {
    const found = [...document.querySelectorAll(".caption + .chances .share")].map(share => share.innerText);
    return String(found) === String(shares) && document.querySelectorAll(".word").length === words;
}"""

SAID = Explanation(
    (Guess("a <b> & c", 0.25), Guess("a d", 0.05), Guess("", 1e-7)),
    (
        Word(Guess("a", 0.5), (Guess("a", 0.5), Guess("the", 0.25)), np.array([[1.0, 0.0], [0.0, 0.0]])),
        Word(Guess("<b>", 0.1), (Guess("x", 0.6), Guess("y", 0.3)), np.array([[0.0, 0.0], [0.0, 1.0]])),
    ),
)


def test_captions_as_html() -> None:
    html = captions_html(SAID)
    assert '<div class="caption">a &lt;b&gt; &amp; c</div>' in html
    assert "<b>" not in html
    for text, width, share in (("a d", "20.0%", "5 %"), ("(no words)", "0.0%", "1 in 10,000,000")):
        assert f'<div>{text}</div><div class="bar"><div style="width: {width}"></div></div>' in html
        assert f'<div class="share">{share}</div>' in html


def test_probabilities_that_underflow_are_shown_as_such() -> None:
    html = captions_html(Explanation((Guess("a", 0.0), Guess("b", 0.0)), ()))
    assert html.count("width: 0.0%") == html.count("under 1e-300") == 2


def test_words_as_html() -> None:
    """The word of the caption is among the alternatives, in the order of probability."""
    html = words_html(SAID)
    assert html.count('class="word"') == 2
    assert "<b>" not in html
    first, second = html.split('<div class="word">')[1:]
    assert first.index("<div class=chosen>a</div>") < first.index("<div>the</div>")
    assert (
        second.index("<div>x</div>") < second.index("<div>y</div>") < second.index("<div class=chosen>&lt;b&gt;</div>")
    )
    assert "width: 10.0%" in second


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (1.0, "100 %"),
        (0.12345, "12.3 %"),
        (2e-5, "0.002 %"),
        (2.4e-6, "1 in 420,000"),
        (3e-14, "3.0e-14"),
        (0.0, "under 1e-300"),
    ],
)
def test_chance(probability: float, text: str) -> None:
    assert chance(probability) == text


def test_attention_maps_are_bright_where_the_weights_are_large() -> None:
    white = Image.new("RGB", (20, 20), "white")
    (first, word), (second, _) = maps(SAID, white)
    assert word == "a"
    assert first.getpixel((0, 0)) == second.getpixel((19, 19)) == (255, 255, 255)
    assert max(first.getpixel((19, 19))) < 128
    assert maps(Explanation(SAID.captions, (Word(SAID.captions[0], ()),)), white) == []


# Arguments and checkpoints --------------------------------------------------------------------------------------------


def test_without_gradio_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert "the page needs gradio: `python -m pip install -r requirements-demo.txt`" in refusal(["demo"], capsys)


def test_invalid_arguments_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn comes with gradio")
    assert "--port must be from 0 to 65535, not 70000" in refusal(["demo", "--port", "70000"], capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--host 127.0.0.1 --port {port}: Address already in use" in refusal(["demo", "--port", port], capsys)
    assert "nowhere.safetensors: no such checkpoint" in refusal(
        ["demo", str(tmp_path / "nowhere.safetensors"), "--port", "0"], capsys
    )


def test_a_checkpoint_without_a_recipe_is_refused(tmp_path: Path) -> None:
    model = explainer("lstm").model
    config = TrainConfig(wordvec_dim=8, hidden_dim=16, cell_type="lstm")
    words = [*explainer("lstm").vocabulary.words]
    checkpoints.save(tmp_path / "x.safetensors", checkpoints.Checkpoint(dict(model.state_dict()), config, words, {}, 3))
    with pytest.raises(ValueError, match=r"x.safetensors: has no recipe of its features"):
        open_explainer(DemoConfig(tmp_path / "x.safetensors"))


def test_the_model_of_a_checkpoint(tmp_path: Path) -> None:
    """With the recipe of the checkpoint and the explanation on the page."""
    made = explainer("lstm")
    model = CaptioningRNN(made.vocabulary.word_to_idx, scenes.FEATURE_DIM, 8, 16, cell_type="lstm", num_layers=2)
    config = TrainConfig(wordvec_dim=8, hidden_dim=16, cell_type="lstm", max_length=4, num_layers=2)
    recipe = {"encoder": recipes.SCENES, "recipe": scenes.VERSION, "features": "vgg16_fc7"}
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    saved = checkpoints.Checkpoint(weights, config, [*made.vocabulary.words], recipe, scenes.FEATURE_DIM)
    checkpoints.save(tmp_path / "x.safetensors", saved)
    loaded, about = open_explainer(DemoConfig(tmp_path / "x.safetensors", device="cpu"))
    assert about == f"{tmp_path / 'x.safetensors'}: lstm, 2 layers, H = 16, 14 words, features by scenes.features"
    picture = Image.new("RGB", (scenes.SIDE, scenes.SIDE), "white")
    features = torch.from_numpy(scenes.features(np.asarray(picture)))
    assert loaded(picture) == explain(model.eval(), made.vocabulary, features, replace(BEST_FIVE, max_length=4))
    assert loaded.visible(picture) is picture


# In the browser -------------------------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(
    not (find_spec("gradio") and find_spec("playwright") and CHROMIUM),
    reason="needs gradio, playwright and Chromium: requirements-demo.txt, and a browser",
)


@dataclass
class Shown:
    """The page in a browser, and all that the browser asked for or complained of."""

    tab: Any
    cell_type: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def upload(self, path: Path) -> None:
        self.tab.locator("input[type=file]").first.set_input_files(path)

    def texts(self, selector: str) -> list[str]:
        return self.tab.locator(selector).all_inner_texts()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes to choose from, a photograph to upload, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(("red", "green", "navy")):
        picture = Image.new("RGB", (30, 30), "white")
        picture.paste(colour, (5 * number, 5, 5 * number + 15, 20))
        picture.save(folder / f"scene_{number}.png")
    pixels = np.linspace(0, 255, 60 * 90 * 3).reshape(60, 90, 3).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    (folder / "bad.jpg").write_text("no picture", encoding="utf-8")
    return folder


@contextmanager
def running(pictures: Path, cell_type: str, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program's process and its address."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.helpers.demo_page", str(pictures), cell_type]
    # In the background of a shell Ctrl-C is ignored, which a child would inherit; a handler it does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        signal.signal(signal.SIGINT, before)
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.stderr.read()
        try:
            yield process, line.split()[0]
        finally:
            process.terminate()
            process.communicate(timeout=30)


@pytest.fixture(scope="module", params=CELLS)
def program(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The program's process, its address, its cell, and the folder for whatever it leaves in the meantime."""
    temporary = tmp_path_factory.mktemp("temporary")
    with running(pictures, request.param, temporary) as (process, address):
        yield process, address, request.param, temporary


@pytest.fixture
def shown(program: Any) -> Iterator[Shown]:
    from playwright.sync_api import sync_playwright

    _, address, cell_type, _ = program
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page(viewport={"width": 1300, "height": 1000})
        shown = Shown(tab, cell_type)
        tab.on("request", lambda request: shown.requests.append(request.url))
        tab.on("console", lambda message: shown.complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: shown.complaints.append(str(error)))
        tab.goto(address, wait_until="networkidle")
        yield shown
        browser.close()


def assert_shows(shown: Shown, picture: Path) -> None:
    """The page shows what the model says of that picture."""
    described = explainer(shown.cell_type)(load_image(picture))
    best = described.captions[0].text or "(no words)"
    shares = [chance(guess.probability) for guess in described.captions]
    words = [word.guess.text for word in described.words]
    shown.tab.wait_for_function(SHOWS, arg=[shares, len(words)])
    assert shown.texts(".caption") == [best]
    assert shown.texts(".word .chosen") == words
    firsts = [max(word.alternatives, key=lambda guess: guess.probability).text for word in described.words]
    assert shown.texts(".word .chances > div:first-child") == firsts
    maps_of = shown.texts(".grid-container .caption-label")
    assert maps_of == (words if shown.cell_type == "attention" else [])


@pytest.mark.exhaustive
@in_browser
def test_uploaded_photographs_and_built_in_scenes_are_captioned(shown: Shown, pictures: Path) -> None:
    """A bad picture is one line, and the next one is captioned."""
    assert "a model <of> random weights" in shown.tab.inner_text("body")
    shown.upload(pictures / "photo.jpg")
    assert_shows(shown, pictures / "photo.jpg")
    shown.tab.locator("button.gallery-item").nth(1).click()
    assert_shows(shown, pictures / "scene_1.png")
    shown.upload(pictures / "bad.jpg")
    shown.tab.locator(".fault").wait_for()
    assert shown.texts(".fault") == ["bad.jpg: not a picture in JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF or HEIC format"]
    assert shown.texts(".word") == []
    shown.tab.locator("button.gallery-item").first.click()
    assert_shows(shown, pictures / "scene_0.png")
    assert shown.texts(".fault") == []


@pytest.mark.exhaustive
@in_browser
def test_the_page_asks_no_other_server(shown: Shown, program: Any, pictures: Path) -> None:
    """The content security policy forbids it."""
    shown.upload(pictures / "photo.jpg")
    assert_shows(shown, pictures / "photo.jpg")
    asked = {urlsplit(request).netloc for request in shown.requests if urlsplit(request).scheme not in ("data", "blob")}
    assert asked == {urlsplit(program[1]).netloc}
    assert shown.complaints == []
    ask = "url => fetch(url, {signal: AbortSignal.timeout(3000)}).then(() => 'answered', error => error.name)"
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(2)
        assert shown.tab.evaluate(ask, f"http://127.0.0.1:{elsewhere.getsockname()[1]}/") == "TypeError"
        with pytest.raises(TimeoutError):
            elsewhere.accept()


@pytest.mark.exhaustive
@in_browser
def test_uploads_are_deleted_at_the_end(program: Any, shown: Shown, pictures: Path) -> None:
    process, _, _, temporary = program
    shown.upload(pictures / "photo.jpg")
    assert_shows(shown, pictures / "photo.jpg")
    assert [*temporary.rglob("photo.jpg")]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    assert [*temporary.iterdir()] == []


# Without a browser ----------------------------------------------------------------------------------------------------


class Visitor:
    """Sends any requests to the program, without a browser."""

    def __init__(self, address: str) -> None:
        self.netloc = urlsplit(address).netloc
        targets = {entry["api_name"]: entry["id"] for entry in json.loads(self.get("/config")[1])["dependencies"]}
        self._show = targets["show"]

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "text/plain") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.netloc, timeout=60)
        connection.request(method, path, body, {"Content-Type": kind} if body is not None else {})
        with connection.getresponse() as answer:
            content = answer.read()
            assert "content-security-policy" in answer.headers
        connection.close()
        return answer.status, content

    def get(self, path: str) -> tuple[int, bytes]:
        return self.ask("GET", path)

    def upload(self, name: str, content: bytes) -> tuple[int, bytes]:
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode("utf-8") + content + b"\r\n--x--\r\n"
        return self.ask("POST", "/gradio_api/upload", body, "multipart/form-data; boundary=x")

    def shown(self, path: str, session: str) -> str:
        """What the page would show of a file, or the program's complaint."""
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
        task = {"data": data, "fn_index": self._show, "session_hash": session}
        status, answer = self.ask("POST", "/gradio_api/queue/join", json.dumps(task).encode(), "application/json")
        assert status == 200, answer
        events = self.get(f"/gradio_api/queue/data?session_hash={session}")[1].decode("utf-8")
        (line,) = [line for line in events.splitlines() if "process_completed" in line]
        output = json.loads(line.removeprefix("data: "))["output"]
        return output.get("error") or output["data"][0]


def test_a_photograph_whose_end_is_missing_is_captioned_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = MagicMock()
    monkeypatch.setattr(demo, "_picture_input", lambda *_: picture)
    demo._page(MagicMock(), explainer("rnn"), "about", [], tmp_path)
    show = picture.change.call_args.args[0]
    (tmp_path / "a.jpg").write_bytes(photo("JPEG", 64)[:-20])
    captions, _, _ = show(str(tmp_path / "a.jpg"))
    fault = '<div class="fault" role="alert">a.jpg: truncated; the missing part is grey</div>'
    assert captions.startswith(fault + '<div class="caption">')


ELSEWHERE = ("/etc/passwd", "../../etc/passwd", "/proc/self/environ", "file:///etc/passwd")
HOSTILE = (
    "nothing", "text", "page", "vector", "pickle", "bigtiff", "avif cut", "jpeg of 65535 x 65535", "jpeg scans",
    "png chunks",
    "jpeg cut in its pixels", "png of 2 ** 31 x 1", "png palette without colours", "gif comments", "bmp runs",
    "webp cut",
)  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.skipif(not find_spec("gradio"), reason="needs gradio: requirements-demo.txt")
def test_a_visitor_gets_nothing_but_the_page(pictures: Path, tmp_path: Path) -> None:
    """No file of this machine, no URL fetched, no traceback in the log; uploaded pictures are captioned."""
    (secret := tmp_path / "secret.png").write_bytes(photo("PNG"))
    (temporary := tmp_path / "temporary").mkdir()
    with running(pictures, "attention", temporary) as (process, address):
        visitor = Visitor(address)
        for path in (str(secret), f"{pictures}/scene_0.png/../bad.jpg", *ELSEWHERE, address):
            for way in ("/gradio_api/file=", "/file=", "/static/", "/assets/", "/gradio_api/proxy="):
                for name in (path, quote(path, safe="")):
                    assert visitor.get(way + name)[0] in (307, 400, 403, 404, 405), way + name
        for number, path in enumerate((str(secret), "/etc/passwd", str(pictures / "photo.jpg"), f"{address}/x.png")):
            for turn in range(2):
                assert visitor.shown(path, f"foreign{number}{turn}") == "not a picture of this page: upload it"
        assert not [*temporary.rglob("secret.png")]
        assert 'class="caption"' in visitor.shown(str(pictures / "scene_0.png"), "chosen")
        assert visitor.upload("large.png", bytes(demo.MAX_BYTES + 1))[0] == 413
        for name in ("a.png", "../../a.png", "/a.png", "..\\a.png", "a" * 300 + ".png", "é 🦊.png"):
            status, answer = visitor.upload(name, photo("PNG"))
            assert status == 200
            (path,) = json.loads(answer)
            assert temporary in Path(path).resolve().parents
            assert 'class="caption"' in visitor.shown(path, "own")
        for number, kind in enumerate(HOSTILE):
            (path,) = json.loads(visitor.upload("a.png", made(kind))[1])
            described = visitor.shown(path, f"hostile{number}")
            assert described.startswith('<div class="fault" role="alert">a.png: '), kind
            assert str(temporary) not in described
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    assert [*temporary.iterdir()] == []
