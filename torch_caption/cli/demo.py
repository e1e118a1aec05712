"""A page that captions a picture: `python -m torch_caption demo CHECKPOINT`.

It takes a photograph or one of the built-in scenes and shows the caption, the five best captions with their
probabilities, each word's alternatives, and where the model looked, if it does. gradio serves all of it from this
machine: the browser is told to fetch nothing from elsewhere, and nothing is reported to anybody. Photographs that are
uploaded are deleted when the program ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
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
from torch_caption.inference.explain import BEST_FIVE, Describer, Description, Guess
from torch_caption.inference.load import load
from torch_caption.io.exits import is_interactive
from torch_caption.io.images import MAX_BYTES, load_image
from torch_caption.io.text import flag_of
from torch_caption.plots import lit
from torch_caption.scenes import dataset as scenes

SCENES = 8  # built-in ones to choose from
FONT = ("system-ui", "sans-serif")  # of the browser's machine; gradio's themes would fetch theirs
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
NOWHERE_ELSE = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


@dataclass(frozen=True)
class DemoConfig:
    """Show a trained model's captions on a web page."""

    checkpoint: Annotated[Positional[Path | None], arg(metavar="[CHECKPOINT]")] = None
    """A checkpoint, a run's directory or a folder of runs; the last run in `runs` without it."""
    data: Annotated[str | None, arg(metavar="DIR")] = None
    """A directory that says how the model's features are made, where the checkpoint does not."""
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """The weights of the network that looks at photographs, where they are not found by what the checkpoint says."""
    decoding: Annotated[DecodingOptions, OmitArgPrefixes] = BEST_FIVE
    """How captions are chosen."""
    host: str = "127.0.0.1"
    """Who can open the page: this machine alone, or 0.0.0.0 for everybody who reaches it."""
    port: int = 7860
    """Where on this machine; 0 takes any that is free."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port must be from 0 to 65535, not {self.port}")
        check_decoding(self.decoding)


def serve(config: DemoConfig) -> None:
    """Show the page until Ctrl-C.

    Raises:
        UsageError, InputError: gradio is not installed, the port is taken, or the checkpoint cannot be used or does not
            say how its features are made.
    """
    config.check()
    _check_gradio()
    import uvicorn

    with _listening(config) as listening, tempfile.TemporaryDirectory(prefix="torch_caption-") as folder:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # uvicorn raises it again when it has closed
        describer, about = open_describer(config)
        app = application(describer, about, built_in(), Path(folder))
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
        raise ConfigError("the page needs gradio: `python -m pip install -r requirements-demo.txt` installs it")


def open_describer(config: DemoConfig) -> tuple[Describer, str]:
    """The model that the configuration names, and a line about it.

    Raises:
        UsageError, InputError: the checkpoint cannot be used, or has no recipe of features.
    """
    opened = load(config.checkpoint, device=config.device, data=config.data, encoder_weights=config.weights)
    model, encoder = opened.model, str(opened.recipe["encoder"]).removeprefix("torch_caption.data.")
    sizes = f"{model.cell_type}, H = {model.hidden_dim}, {model.vocab_size:,} words"
    options = opened.options_for(config.decoding, flag_of)
    describer = Describer(model, opened.vocabulary, opened.recipe, opened.extractor, options)
    return describer, f"{opened.path}: {sizes}, features by {encoder}"


def built_in() -> list[Path]:
    """Pictures of some built-in scenes, drawn on first use."""
    test = open_data(scenes.ensure(progress=is_interactive()), in_memory="no")["test"]
    return [path for idx in range(SCENES) if (path := test.image_path(idx)) is not None]


def application(describer: Describer, about: str, pictures: Sequence[Path], folder: Path) -> Any:
    """The page as an ASGI application.

    Args:
        describer: what says something of a picture.
        about: a line that is shown below the title.
        pictures: files to choose from.
        folder: for what is uploaded.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read before every report that it would send
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    import fastapi
    import gradio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(NothingFromElsewhere)
    theme = gradio.themes.Base(font=FONT, font_mono=("ui-monospace", "monospace"))
    return gradio.mount_gradio_app(
        app,
        _page(gradio, describer, about, pictures, folder),
        path="/",
        theme=theme,
        css=STYLE,
        footer_links=[],
        max_file_size=MAX_BYTES,
        allowed_paths=[str(path) for path in pictures],
        ssr_mode=False,
        pwa=False,
    )


class NothingFromElsewhere:
    """Middleware: with every answer the browser is told to fetch nothing from any other machine."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", NOWHERE_ELSE)]
            await send(message)

        await self._app(scope, receive, answer)


def _page(gradio: Any, describer: Describer, about: str, pictures: Sequence[Path], folder: Path) -> Any:
    looks = describer.model.cell.attends
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
        gradio.HTML("<h3>where the model looked before each word</h3>", visible=looks)
        looked = gradio.Gallery(columns=6, height="auto", visible=looks, show_label=False)

        def show(path: str | None) -> tuple[str, str, list[tuple[Image.Image, str]]]:
            if path is None:
                return "", "", []
            told: list[str] = []
            try:
                shown = load_image(Path(path), truncated=told.append)
                description = describer(shown)
            except TorchCaptionError as error:
                return fault_html(_without_folder(error, path)), "", []
            faults = "".join(fault_html(_without_folder(line, path)) for line in told)
            return (
                faults + captions_html(description),
                words_html(description),
                maps(description, describer.seen(shown)),
            )

        picture.change(show, picture, [captions, words, looked], api_visibility="private", show_progress="minimal")
    return page


def _picture_input(gradio: Any, pictures: Sequence[Path], folder: Path) -> Any:
    """gradio's own input, but for the file: this library reads it, with limits, and says what is wrong with it.

    Who asks without the page may name any file of this machine, or a URL, which gradio would bring: it looks at the
    name only in pages that it has launched itself. Here it is one of the pictures to choose from, or one uploaded.
    """
    picture = gradio.Image(label="photograph", sources=["upload", "clipboard"], type="filepath", height=320)
    # A subclass would do as well, but gradio writes an interface of it beside this file.
    picture.preprocess = lambda uploaded: None if uploaded is None else uploaded.path
    bring = picture.async_move_resource_to_block_cache
    known = {path.resolve() for path in pictures}

    async def bring_ours(path: str | Path | None) -> Any:
        if (
            path is not None
            and Path(path).resolve() not in known
            and folder.resolve() not in Path(path).resolve().parents
        ):
            raise gradio.Error("not a picture of this page: upload it", print_exception=False)
        return await bring(path)

    picture.async_move_resource_to_block_cache = bring_ours
    return picture


def _without_folder(error: object, path: str) -> str:
    """The message with the file's own name alone."""
    return str(error).replace(str(Path(path).parent) + os.sep, "")


def fault_html(message: str) -> str:
    """What is wrong with a picture."""
    return f'<div class="fault" role="alert">{escape(message)}</div>'


def captions_html(description: Description) -> str:
    """The best caption, and all of them with their probabilities, the bars against the longest."""
    longest = max(guess.probability for guess in description.captions)
    # What is less probable than any number that is not 0 has no bar.
    rows = "".join(_row(guess, longest and guess.probability / longest) for guess in description.captions)
    text = escape(description.captions[0].text) or "(no words)"
    return f'<div class="caption">{text}</div><div class="chances">{rows}</div>'


def words_html(description: Description) -> str:
    """A card for each word of the best caption: the likeliest words in its place, the bars against certainty."""
    cards = []
    for word in description.words:
        others = [guess for guess in word.alternatives if guess.text != word.guess.text]
        guesses = sorted([word.guess, *others], key=lambda guess: -guess.probability)
        rows = "".join(_row(guess, guess.probability, chosen=guess is word.guess) for guess in guesses)
        cards.append(f'<div class="word"><div class="chances">{rows}</div></div>')
    return f'<h3>each word, and what might have stood there</h3><div class="words">{"".join(cards)}</div>'


def _row(guess: Guess, length: float, *, chosen: bool = False) -> str:
    """Text, bar of a length from 0 to 1, share."""
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


def maps(description: Description, seen: Image.Image) -> list[tuple[Image.Image, str]]:
    """The picture for each word, bright where the model looked before it, with the word; none if it does not look."""
    return [(lit(seen, word.attention), word.guess.text) for word in description.words if word.attention is not None]


def main(args: Sequence[str], prog: str) -> None:
    serve(tyro.cli(DemoConfig, args=args, prog=prog))
