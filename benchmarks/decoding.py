"""Greedy captions and beam search, against the loops of nn.RNNCell or nn.LSTMCell that a user writes.

Attention to the positions of a grid, which no other part measures, is among the cells here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import Disagreement
from benchmarks.options import Options
from benchmarks.peers import Speaker
from benchmarks.step import OURS
from benchmarks.tables import Column, Table
from benchmarks.timing import QUICK, Contender, Effort, race
from benchmarks.workload import IDS, Shape, new_model
from torch_caption.data.vocabulary import END, NULL, START
from torch_caption.model.captioner import CaptioningRNN

STEPS = 30
WORDS = 11.0  # of a caption on average, <END> counted
TIE = 1e-5  # float32 may choose the other of two words whose log-probabilities are this close
BEAMS = 5
ALL_STEPS, UNTIL_ALL_END = "loop, 30 steps", "loop until all rows end"
ATTENTION = "attention"
POSITIONS = 49

COLUMNS = (
    *(Column("cell"), Column("N", ",d"), Column("V", ",d")),
    *(Column("ms", ".2f"), Column("quartiles", ".2f"), Column("us a caption", ",.0f")),
    *(Column(f"over {name}", ".2f") for name in (ALL_STEPS, UNTIL_ALL_END)),
    *(Column("words", ".1f"), Column("shortest-longest", "d"), Column("ties", "d")),
)
NOTES = (
    f"H=512 W=256, at most {STEPS} words; words: the mean length of a caption, <END> counted",
    f"the same captions as the loop's: in float64 all of them, in float32 all but those parted by a tie within {TIE:g}",
    "float32 products of all are torch's default, as in sample.py",
)


BEAM_COLUMNS = (
    *(Column("cell"), Column("N", ",d"), Column("V", ",d")),
    *(Column("ms", ".1f"), Column("quartiles", ".1f"), Column("us a caption", ",.0f")),
    *(Column("over the loop", ".2f"), Column("words", ".1f"), Column("parted", "d")),
)
BEAM_NOTES = (
    f"H=512 W=256, at most {STEPS} words; words: the mean length of the best caption, <END> counted",
    "the loop: image after image, hypothesis after hypothesis, each a step of the cell and its topk; a list is sorted",
    "all captions of all beams are the loop's in float64; parted: images for which they are not in float32",
)


def tables(options: Options) -> Iterator[Table]:
    """Two tables, of greedy captions and of beams, of each cell, V and N."""
    effort = QUICK if options.quick else Effort(options.seconds / 3, least=3)
    F, W, H = (5, 4, 6) if options.quick else (512, 256, 512)
    rows, beams = [], []
    for cell in (*options.cells, ATTENTION):
        for V in (20,) if options.quick else (1004, 10000):
            model = captioner(Shape("", N=0, T=0, F=F, W=W, H=H, V=V), cell)
            rows += [(cell, N, V, *measure(model, N, effort)) for N in ((1, 5) if options.quick else (1, 128))]
            beams += [(cell, N, V, *measure_beams(model, N, effort)) for N in ((1, 3) if options.quick else (1, 16))]
    yield Table("decoding", "greedy captions", COLUMNS, tuple(rows), NOTES)
    yield Table("decoding", f"beam search, {BEAMS} beams an image", BEAM_COLUMNS, tuple(beams), BEAM_NOTES)


def measure(model: CaptioningRNN, N: int, effort: Effort) -> tuple[Any, ...]:
    """Time ours and the two loops on N images' random features, once their captions have been found to be the same."""
    features = new_features(model, N)
    require_same(model.double(), features.double(), allowed=0.0)
    ties = require_same(model.float(), features, allowed=TIE)
    peer = Speaker(model)
    contenders = [
        Contender(OURS, lambda: model.sample(features, STEPS)),
        Contender(ALL_STEPS, lambda: plain_loop(peer, features)),
        Contender(UNTIL_ALL_END, lambda: plain_loop(peer, features, stop=True)),
    ]
    label = f"decoding, {model.cell_type}, N={N}, V={model.vocab_size}"
    times = {name: t for (name, _), t in race(contenders, effort, label=label).items()}
    ours = times[OURS]
    lengths = caption_lengths(model.sample(features, STEPS))
    return (
        *(1e3 * ours.median, tuple(1e3 * t for t in ours.quartiles), 1e6 * ours.median / N),
        *(times[name].median / ours.median for name in (ALL_STEPS, UNTIL_ALL_END)),
        *(float(lengths.double().mean()), (int(lengths.min()), int(lengths.max())), ties),
    )


def new_features(model: CaptioningRNN, N: int) -> Tensor:
    """Random ones of N images, (N, F), or (N, F, POSITIONS) for a cell that attends."""
    positions = (POSITIONS,) if model.cell_type == ATTENTION else ()
    return torch.randn(N, model.input_dim, *positions, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def plain_loop(peer: Speaker, features: Tensor, *, stop: bool = False) -> Tensor:
    """Words (N, 30), whatever follows <END> left as it comes; with `stop` the loop ends when every row has one."""
    word = torch.full((len(features),), IDS[START])
    state = peer.begin(features)
    ended = torch.zeros(len(features), dtype=torch.bool)
    words = []
    for _ in range(STEPS):
        scores, state = peer.step(word, state)
        word = torch.log_softmax(scores, dim=1).argmax(1)
        words.append(word)
        if stop:
            ended |= word == IDS[END]
            if ended.all():
                break
    return torch.stack(words, dim=1)


def caption_lengths(words: Tensor) -> Tensor:
    """How many words each row (N, T) has, its first <END> counted."""
    ended = (words == IDS[END]).cumsum(1)
    return ((ended - (words == IDS[END]).long()) == 0).sum(1)


def require_same(model: CaptioningRNN, features: Tensor, allowed: float) -> int:
    """Hold our captions against the loop's; how many rows part ways at a tie.

    Raises:
        Disagreement: a row parts ways where the two words' log-probabilities differ by more than `allowed`.
    """
    peer = Speaker(model)
    ours, theirs = model.sample(features, STEPS), plain_loop(peer, features)
    theirs = theirs.masked_fill(torch.arange(STEPS) >= caption_lengths(theirs).unsqueeze(1), IDS[NULL])
    parted = (ours != theirs).any(1).nonzero().squeeze(1).tolist()
    for row in parted:
        t = int((ours[row] != theirs[row]).nonzero()[0])
        gap = _gap(peer, features[row : row + 1], theirs[row], t, int(ours[row, t]))
        if not gap <= allowed:
            raise Disagreement(
                f"decoding, {model.cell_type}, V={model.vocab_size}, {features.dtype}: at step {t} row {row} has word "
                f"{int(ours[row, t])}, but the loop {int(theirs[row, t])}; their log-probabilities differ by {gap:.1e}"
            )
    return len(parted)


@torch.no_grad()
def _gap(peer: Speaker, features: Tensor, words: Tensor, t: int, other: int) -> float:
    """How far log p of words[t] is from that of `other`, after words[:t]."""
    state = peer.begin(features)
    for word in torch.cat([torch.tensor([IDS[START]]), words[:t]]).split(1):
        scores, state = peer.step(word, state)
    log_p = torch.log_softmax(scores, dim=1)[0]
    return float((log_p[words[t]] - log_p[other]).abs())


# Beams ---------------------------------------------------------------------------------------------------------------


def measure_beams(model: CaptioningRNN, N: int, effort: Effort) -> tuple[Any, ...]:
    """Time our beam search and the loop on N images' random features, once their beams were found to be the same."""
    features = new_features(model, N)
    require_same_beams(model.double(), features.double())
    peer = Speaker(model.float())
    parted = sum(parted_beams(model, peer, features))
    contenders = [
        Contender(OURS, lambda: model.beam_search(features, BEAMS, STEPS, length_penalty=0.0)),
        Contender("loop", lambda: plain_beams(peer, features)),
    ]
    label = f"beam search, {model.cell_type}, N={N}, V={model.vocab_size}"
    times = {name: t for (name, _), t in race(contenders, effort, label=label).items()}
    ours = times[OURS]
    return (
        *(1e3 * ours.median, tuple(1e3 * t for t in ours.quartiles), 1e6 * ours.median / N),
        *(times["loop"].median / ours.median, float(model.beam_search(features, BEAMS).lengths[:, 0].double().mean())),
        parted,
    )


@torch.no_grad()
def plain_beams(peer: Speaker, features: Tensor) -> list[list[list[int]]]:
    """The captions of each image, best first, <END> included where it was reached."""
    return [_plain_beam(peer, image) for image in features.split(1)]


def _plain_beam(peer: Speaker, image: Tensor) -> list[list[int]]:
    live = [(0.0, [IDS[START]], peer.begin(image))]
    done: list[tuple[float, list[int]]] = []
    for _ in range(STEPS):
        grown = []
        for total, words, before in live:
            scores, state = peer.step(torch.tensor(words[-1:]), before)
            values, ids = torch.log_softmax(scores, dim=1)[0].topk(BEAMS)
            grown += [(total + v, [*words, k], state) for v, k in zip(values.tolist(), ids.tolist(), strict=True)]
        grown.sort(key=lambda hypothesis: -hypothesis[0])
        grown = grown[: BEAMS - len(done)]
        done += [(total, words) for total, words, _ in grown if words[-1] == IDS[END]]
        live = [hypothesis for hypothesis in grown if hypothesis[1][-1] != IDS[END]]
        if not live:
            break
    done += [(total, words) for total, words, _ in live]
    done.sort(key=lambda hypothesis: -hypothesis[0])
    return [words[1:] for _, words in done]


def parted_beams(model: CaptioningRNN, peer: Speaker, features: Tensor) -> list[bool]:
    """Of each image whether our beams and the loop's differ in any word."""
    beams = model.beam_search(features, BEAMS, STEPS, length_penalty=0.0)
    ours = [
        [caption[:length] for caption, length in zip(*image, strict=True)]
        for image in zip(beams.words.tolist(), beams.lengths.tolist(), strict=True)
    ]
    return [one != other for one, other in zip(ours, plain_beams(peer, features), strict=True)]


def require_same_beams(model: CaptioningRNN, features: Tensor) -> None:
    """Raise Disagreement, naming the first image for which our beams are not the loop's."""
    for row, parted in enumerate(parted_beams(model, Speaker(model), features)):
        if parted:
            raise Disagreement(
                f"beam search, {model.cell_type}, V={model.vocab_size}, {features.dtype}: the beams of row "
                f"{row} differ from the loop's"
            )


# Captions that end ---------------------------------------------------------------------------------------------------


def captioner(shape: Shape, cell: str) -> CaptioningRNN:
    """A captioner with random weights whose captions end as real ones do, after about 11 words, some sooner or later.

    Hidden unit 0 is a clock: it takes a small step up with every word, a little more or less as the word has it, and
    only <END> reads it. Where it starts depends on the image in the RNN; the LSTM's cell starts at zero.
    """
    model = new_model(shape, cell).eval()
    with torch.no_grad():
        CLOCKS[cell](model)
        model.W_embed.mul_(100)  # entries of size 1, as training makes them
        model.W_vocab[:, IDS[END]] = 0
        model.W_vocab[0] = 0
        model.W_vocab[0, IDS[END]] = 200
        model.b_vocab[[IDS[NULL], IDS[START]]] = -1e4  # which no trained model says
        _set_mean_length(model)
    return model


def _rnn_clock(model: CaptioningRNN) -> None:
    """h = tanh(h + 0.02 + noise of the word), from about -0.2."""
    model.W_proj[:, 0] *= 0.02
    model.b_proj[0] = -0.2
    model.Wh[:, 0], model.Wh[0, 0] = 0, 1
    model.Wx[:, 0] *= 0.005
    model.b[0] = 0.02


def _lstm_clock(model: CaptioningRNN) -> None:
    """c = c + tanh(0.02 + noise of the word and of the state), all gates of the unit held open."""
    H = model.hidden_dim
    for gate in range(4):
        unit = gate * H
        model.Wh[:, unit] *= 0.01 if gate == 3 else 0
        model.Wh[0, unit] = 0
        model.Wx[:, unit] *= 0.005 if gate == 3 else 0
        model.b[unit] = 0.02 if gate == 3 else 8
    # the other units' gates are left as they were drawn


def _attention_clock(model: CaptioningRNN) -> None:
    """As the LSTM's, which sees nothing of the image: its unit is zero at every place, and its gates read no place."""
    _lstm_clock(model)
    model.W_proj[:, 0] = 0
    model.b_proj[0] = 0
    model.get_parameter("Wattn")[:, :: model.hidden_dim] = 0


CLOCKS: dict[str, Callable[[CaptioningRNN], None]] = {
    "rnn": _rnn_clock,
    "lstm": _lstm_clock,
    ATTENTION: _attention_clock,
}


def _set_mean_length(model: CaptioningRNN) -> None:
    """b_vocab of <END> by bisection, until captions have `WORDS` words on average."""
    features = new_features(model, 32)
    low, high = -100.0, 100.0
    for _ in range(12):
        model.b_vocab[IDS[END]] = (low + high) / 2
        mean = float(caption_lengths(model.sample(features, STEPS)).double().mean())
        low, high = (low, (low + high) / 2) if mean < WORDS else ((low + high) / 2, high)
