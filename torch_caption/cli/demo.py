"""A page that captions a picture: `python -m torch_caption demo CHECKPOINT`.

It takes a photograph or one of the built-in scenes and shows the caption, the five best captions with their
probabilities, the alternatives of each word, and the attention maps of a model with attention. gradio serves the page
from this machine: its content security policy forbids other hosts, and no telemetry is sent. Uploaded photographs are
deleted when the program exits.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from abc import ABCMeta
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image
from tyro.conf import OmitArgPrefixes, Positional, arg

from torch_caption.cli.decoding_flags import check_decoding
from torch_caption.data.dataset import open_data
from torch_caption.decoding import DecodingOptions
from torch_caption.errors import ConfigError, TorchCaptionError
from torch_caption.inference.explain import BEST_FIVE, Explainer, Explanation, Guess
from torch_caption.inference.load import load
from torch_caption.io.exits import is_interactive
from torch_caption.io.images import MAX_BYTES, load_image
from torch_caption.io.text import flag_of
from torch_caption.plots import lit
from torch_caption.scenes import dataset as scenes

SCENES = 8  # built-in examples
FONT = ("system-ui", "sans-serif")  # local fonts; gradio's themes would download theirs
STYLE = """
.caption { font-size: 1.6em; line-height: 1.3; margin: 0 0 0.6em; }
.fault { color: #B04A00; font-size: 1.2em; }
.chances { display: grid; gap: 0.35em 0.8em; align-items: center; grid-template-columns: 1fr 9em auto; }
.word .chances { grid-template-columns: minmax(0, 1fr) 2em auto; column-gap: 0.6em; overflow-wrap: anywhere; }
.chances .bar { height: 0.7em; }
.chances .bar div { height: 100%; background: #0072B2; border-radius: 2px; min-width: 1px; }
.chances .share { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.words { display: grid; gap: 0.8em; grid-template-columns: repeat(auto-fill, minmax(17em, 1fr)); }
.word { border: 1px solid #8888; border-radius: 6px; padding: 0.6em 0.8em; }
.chosen { font-weight: bold; }
"""
POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


@dataclass(frozen=True)
class DemoConfig:
    """Serve a web page that captions pictures with a trained model."""

    checkpoint: Annotated[Positional[str | None], arg(metavar="[CHECKPOINT]")] = None
    """Checkpoint, run, folder of runs or hf://OWNER/NAME; the default is the last run in `runs`."""
    data: Annotated[str | None, arg(metavar="DIR")] = None
    """Data directory with the recipe of the features, if the checkpoint has none."""
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of the image encoder, if they are not found automatically."""
    decoding: Annotated[DecodingOptions, OmitArgPrefixes] = BEST_FIVE
    """Decoding."""
    host: str = "127.0.0.1"
    """Address to listen on: this machine only by default; 0.0.0.0 for all that reach it."""
    port: int = 7860
    """Port; 0 uses any free one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto uses a GPU if there is one."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port must be from 0 to 65535, not {self.port}")
        check_decoding(self.decoding)


def serve(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UsageError, InputError: gradio is not installed, the port is taken, or the checkpoint cannot be used or has no
            recipe of features.
    """
    config.check()
    _check_gradio()
    import uvicorn

    with _listening(config) as listening, tempfile.TemporaryDirectory(prefix="torch_caption-") as folder:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # uvicorn raises it again after its shutdown
        explainer, about = open_explainer(config)
        app = application(explainer, about, built_in(), Path(folder))
        host, port = listening.getsockname()[:2]
        print(f"http://{host}:{port} shows the page; Ctrl-C ends it", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _listening(config: DemoConfig) -> socket.socket:
    try:
        return socket.create_server((config.host, config.port))
    except OSError as error:
        raise ConfigError(f"--host {config.host} --port {config.port}: {error.strerror}") from None


def _check_gradio() -> None:
    if find_spec("gradio") is None:
        raise ConfigError("the page needs gradio: `python -m pip install -r requirements-demo.txt`")


def open_explainer(config: DemoConfig) -> tuple[Explainer, str]:
    """The model of the configuration, and a line about it.

    Raises:
        UsageError, InputError: the checkpoint cannot be used, or has no recipe of features.
    """
    opened = load(config.checkpoint, device=config.device, data=config.data, encoder_weights=config.weights)
    model, encoder = opened.model, str(opened.recipe["encoder"]).removeprefix("torch_caption.data.")
    layers = f", {model.num_layers} layers" if model.num_layers > 1 else ""
    sizes = f"{model.cell_type}{layers}, H = {model.hidden_dim}, {model.vocab_size:,} words"
    options = opened.options_for(config.decoding, flag_of)
    explainer = Explainer(model, opened.vocabulary, opened.recipe, opened.extractor, options)
    return explainer, f"{opened.path}: {sizes}, features by {encoder}"


def built_in() -> list[Path]:
    """Pictures of some built-in scenes, generated on first use."""
    test = open_data(scenes.ensure(progress=is_interactive()), in_memory="no")["test"]
    return [path for idx in range(SCENES) if (path := test.image_path(idx)) is not None]


def application(explainer: Explainer, about: str, pictures: Sequence[Path], folder: Path) -> Any:
    """The page as an ASGI application.

    Args:
        explainer: of the model.
        about: a line below the title.
        pictures: files of the examples.
        folder: for uploads.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read before each telemetry report
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    import fastapi
    import gradio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(ContentSecurityPolicy)
    theme = gradio.themes.Base(font=FONT, font_mono=("ui-monospace", "monospace"))
    return gradio.mount_gradio_app(
        app,
        _page(gradio, explainer, about, pictures, folder),
        path="/",
        theme=theme,
        css=STYLE,
        footer_links=[],
        max_file_size=MAX_BYTES,
        allowed_paths=[str(path) for path in pictures],
        ssr_mode=False,
        pwa=False,
    )


class ContentSecurityPolicy:
    """Middleware that adds a content security policy: the browser loads nothing from other hosts."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY)]
            await send(message)

        await self._app(scope, receive, answer)


def _page(gradio: Any, explainer: Explainer, about: str, pictures: Sequence[Path], folder: Path) -> Any:
    attends = explainer.model.cell.attends
    with gradio.Blocks(title="torch_caption", analytics_enabled=False) as page:
        gradio.HTML(f"<h1>torch_caption</h1><p>{escape(about)}</p>")
        with gradio.Row():
            with gradio.Column(scale=2):
                picture = _picture_input(gradio, pictures, folder)
                gradio.Examples(
                    [str(path) for path in pictures], picture, label="built-in scenes", cache_examples=False
                )
            with gradio.Column(scale=3):
                captions = gradio.HTML(label="captions")
        words = gradio.HTML()
        gradio.HTML("<h3>attention at each word</h3>", visible=attends)
        attention = gradio.Gallery(columns=6, height="auto", visible=attends, show_label=False)

        def show(path: str | None) -> tuple[str, str, list[tuple[Image.Image, str]]]:
            if path is None:
                return "", "", []
            warnings: list[str] = []
            try:
                shown = load_image(Path(path), truncated=warnings.append)
                explanation = explainer(shown)
            except TorchCaptionError as error:
                return fault_html(_without_folder(error, path)), "", []
            faults = "".join(fault_html(_without_folder(line, path)) for line in warnings)
            return (
                faults + captions_html(explanation),
                words_html(explanation),
                maps(explanation, explainer.visible(shown)),
            )

        picture.change(show, picture, [captions, words, attention], api_visibility="private", show_progress="minimal")
    return page


def _picture_input(gradio: Any, pictures: Sequence[Path], folder: Path) -> Any:
    """gradio's input, except that this library reads the file, with limits and error messages.

    A request without the page may name any file of this machine, or a URL, which gradio would load: it checks names
    only in pages that it launches itself. Here only examples and uploads are accepted.
    """
    examples = {path.resolve() for path in pictures}

    async def load_own_file(self: Any, path: str | Path | None) -> Any:
        if (
            path is not None
            and Path(path).resolve() not in examples
            and folder.resolve() not in Path(path).resolve().parents
        ):
            raise gradio.Error("not a picture of this page: upload it", print_exception=False)
        return await gradio.Image.async_move_resource_to_block_cache(self, path)

    # A class, since the choice of an example replaces the input by a new one of its class; made without gradio's own
    # metaclass, which would write an interface file for it beside this file.
    attributes = {
        "__module__": gradio.Image.__module__,
        "preprocess": lambda self, uploaded: None if uploaded is None else uploaded.path,
        "async_move_resource_to_block_cache": load_own_file,
    }
    own = ABCMeta.__new__(type(gradio.Image), "Image", (gradio.Image,), attributes)
    return own(label="photograph", sources=["upload", "clipboard"], type="filepath", height=320)


def _without_folder(error: object, path: str) -> str:
    """The message with the name of the file instead of its path."""
    return str(error).replace(str(Path(path).parent) + os.sep, "")


def fault_html(message: str) -> str:
    """An error about a picture."""
    return f'<div class="fault" role="alert">{escape(message)}</div>'


def captions_html(explanation: Explanation) -> str:
    """The best caption, and all captions with probabilities; bars are relative to the most probable one."""
    longest = max(guess.probability for guess in explanation.captions)
    # Probabilities that underflow to 0 have no bar.
    rows = "".join(_row(guess, longest and guess.probability / longest) for guess in explanation.captions)
    text = escape(explanation.captions[0].text) or "(no words)"
    return f'<div class="caption">{text}</div><div class="chances">{rows}</div>'


def words_html(explanation: Explanation) -> str:
    """A card for each word of the best caption: the most probable words at its step; a full bar is probability 1."""
    cards = []
    for word in explanation.words:
        others = [guess for guess in word.alternatives if guess.text != word.guess.text]
        guesses = sorted([word.guess, *others], key=lambda guess: -guess.probability)
        rows = "".join(_row(guess, guess.probability, chosen=guess is word.guess) for guess in guesses)
        cards.append(f'<div class="word"><div class="chances">{rows}</div></div>')
    return f'<h3>each word and its alternatives</h3><div class="words">{"".join(cards)}</div>'


def _row(guess: Guess, length: float, *, chosen: bool = False) -> str:
    """Text, bar of a length from 0 to 1, probability."""
    text = escape(guess.text) or "(no words)"
    return (
        f"<div{' class=chosen' if chosen else ''}>{text}</div>"
        f'<div class="bar"><div style="width: {100 * length:.1f}%"></div></div>'
        f'<div class="share">{escape(chance(guess.probability))}</div>'
    )


def chance(probability: float) -> str:
    """Three digits of a percentage, or two of how many there are one in, or how small a number it is."""
    if probability >= 1e-5:
        return f"{100 * probability:.3g} %"
    if probability >= 1e-10:
        return f"1 in {float(f'{1 / probability:.2g}'):,.0f}"
    return f"{probability:.1e}" if probability else "under 1e-300"


def maps(explanation: Explanation, picture: Image.Image) -> list[tuple[Image.Image, str]]:
    """The attention map of each word, with the word; empty without attention."""
    return [(lit(picture, word.attention), word.guess.text) for word in explanation.words if word.attention is not None]


def main(args: Sequence[str], prog: str) -> None:
    serve(tyro.cli(DemoConfig, args=args, prog=prog))
