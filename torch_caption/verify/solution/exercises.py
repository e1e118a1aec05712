"""What a solution must have: the assignment's functions, and inputs on which mistakes show.

All values are float64 tensors here; `dialects` converts them to what a solution takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NULL, START, END = 0, 1, 2


@dataclass(frozen=True)
class Exercise:
    """One function of the assignment, or a forward and its backward.

    Attributes:
        name: of the function, without `_forward`.
        inputs: the differentiable inputs in their order, each with the letters of its shape.
        outputs: their names, each with the letters of its shape.
        uses: the functions of `model` that it runs.
    """

    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: what is particular about it.
        sizes: by letter.
        inputs: the arguments by name; those of `Exercise.inputs`, and integers and masks.
        douts: the gradient of each output that is given to the backward.
    """

    name: str
    sizes: Mapping[str, int]
    inputs: Mapping[str, Any]
    douts: Mapping[str, Tensor] = field(default_factory=dict)


_OF_RNN = {"Wx": "D H", "Wh": "H H", "b": "H"}
_OF_LSTM = {"Wx": "D 4H", "Wh": "H 4H", "b": "4H"}
_RNN_STEP = ("rnn_step_forward", "rnn_step_backward")
_LSTM_STEP = ("lstm_step_forward", "lstm_step_backward")
_RNN = (*_RNN_STEP, "rnn_forward", "rnn_backward")
_LSTM = (*_LSTM_STEP, "lstm_forward", "lstm_backward")
_EMBEDDING = ("word_embedding_forward", "word_embedding_backward")
_AFFINE = ("temporal_affine_forward", "temporal_affine_backward")
_ATTENTION = ("dot_product_attention", "lstm_step_forward", "attention_forward")
_AROUND = (*_EMBEDDING, *_AFFINE, "temporal_softmax_loss", "captioner_loss")

FUNCTIONS = {
    exercise.name: exercise
    for exercise in (
        Exercise("word_embedding", {"W": "V D"}, {"out": "N T D"}, _EMBEDDING),
        Exercise("temporal_affine", {"x": "N T D", "w": "D M", "b": "M"}, {"out": "N T M"}, _AFFINE),
        Exercise("temporal_softmax_loss", {"x": "N T V"}, {"loss": ""}, ("temporal_softmax_loss",)),
        Exercise("rnn_step", {"x": "N D", "prev_h": "N H", **_OF_RNN}, {"next_h": "N H"}, _RNN_STEP),
        Exercise("rnn", {"x": "N T D", "h0": "N H", **_OF_RNN}, {"h": "N T H"}, _RNN),
        Exercise(
            "lstm_step",
            {"x": "N D", "prev_h": "N H", "prev_c": "N H", **_OF_LSTM},
            {"next_h": "N H", "next_c": "N H"},
            _LSTM_STEP,
        ),
        Exercise("lstm", {"x": "N T D", "h0": "N H", **_OF_LSTM}, {"h": "N T H"}, _LSTM),
        Exercise(
            "dot_product_attention",
            {"prev_h": "N H", "A": "N H 4 4"},
            {"attn": "N H", "weights": "N 4 4"},
            ("dot_product_attention",),
        ),
        Exercise(
            "attention",
            {"x": "N T D", "A": "N H 4 4", "Wx": "D 4H", "Wh": "H 4H", "Wattn": "H 4H", "b": "4H"},
            {"h": "N T H"},
            _ATTENTION,
        ),
    )
}
CELLS = {
    "rnn": (*_AROUND, *_RNN),
    "lstm": (*_AROUND, *_LSTM),
    "attention": (*_AROUND, *_ATTENTION),
}


def captioner(cell: str, sampling: bool) -> Exercise:
    """The loss of the captioner with its gradients, or the captions that it samples."""
    gates = 1 if cell == "rnn" else 4
    width = "H" if gates == 1 else "4H"
    params = {
        **{"W_proj": "D H", "b_proj": "H", "W_embed": "V W"},
        **{"Wx": f"W {width}", "Wh": f"H {width}", "b": width, "W_vocab": "H V", "b_vocab": "V"},
    }
    if cell == "attention":
        params["Wattn"] = "H 4H"
    if sampling:
        steps = tuple(name for name in CELLS[cell] if "step_forward" in name or "attention" in name)
        return Exercise(f"CaptioningRNN.sample, {cell}", params, {"captions": "N 9"}, (*steps, "captioner_sample"))
    return Exercise(f"CaptioningRNN.loss, {cell}", params, {"loss": ""}, CELLS[cell])


# Sizes that all differ, so that no axis passes for another; the first two are those of a diagnosis.
SIZES = {
    "random": {"N": 3, "T": 4, "D": 5, "H": 6, "V": 8, "M": 7, "W": 10},
    "other sizes": {"N": 4, "T": 6, "D": 3, "H": 5, "V": 9, "M": 2, "W": 7},
    "one caption, N = 1": {"N": 1, "T": 3, "D": 4, "H": 5, "V": 6, "M": 7, "W": 8},
    "one time step, T = 1": {"N": 3, "T": 1, "D": 4, "H": 5, "V": 6, "M": 7, "W": 8},
}
# Of sampled captions, whose words must differ: many captions, many words.
OF_SAMPLES = {
    "random": {"N": 25, "T": 4, "D": 5, "H": 12, "V": 40, "M": 7, "W": 10},
    "other sizes": {"N": 30, "T": 6, "D": 6, "H": 11, "V": 50, "M": 2, "W": 9},
}
# The inputs of the notebooks, whose outputs the courses publish: equal steps from the first number to the last.
PUBLISHED = {
    "rnn_step": (
        {"N": 3, "D": 10, "H": 4},
        {"x": (-0.4, 0.7), "prev_h": (-0.2, 0.5), "Wx": (-0.1, 0.9), "Wh": (-0.3, 0.7), "b": (-0.2, 0.4)},
    ),
    "rnn": (
        {"N": 2, "T": 3, "D": 4, "H": 5},
        {"x": (-0.1, 0.3), "h0": (-0.3, 0.1), "Wx": (-0.2, 0.4), "Wh": (-0.4, 0.1), "b": (-0.7, 0.1)},
    ),
    "lstm_step": (
        {"N": 3, "D": 4, "H": 5},
        {
            **{"x": (-0.4, 1.2), "prev_h": (-0.3, 0.7), "prev_c": (-0.4, 0.9)},
            **{"Wx": (-2.1, 1.3), "Wh": (-0.7, 2.2), "b": (0.3, 0.7)},
        },
    ),
    "lstm": (
        {"N": 2, "T": 3, "D": 5, "H": 4},
        {"x": (-0.4, 0.6), "h0": (-0.4, 0.8), "Wx": (-0.2, 0.9), "Wh": (-0.3, 0.6), "b": (0.2, 0.7)},
    ),
}
DIAGNOSED = 2


def cases(exercise: Exercise, seed: int = 0) -> list[Case]:
    """Inputs of `exercise`: the sizes of `SIZES`, then what is particular to the function."""
    samples = exercise.name.startswith("CaptioningRNN.sample")
    made = [
        _case(exercise, name, sizes, seed + k)
        for k, (name, sizes) in enumerate((OF_SAMPLES if samples else SIZES).items())
    ]
    first = made[0]
    if exercise.name == "temporal_softmax_loss":
        mask = first.inputs["mask"]
        for name, changed in {
            "mask all True": {"mask": torch.ones_like(mask)},
            "mask all False": {"mask": torch.zeros_like(mask)},
            "large logits": {"x": first.inputs["x"] * 1000},
        }.items():
            made.append(Case(name, first.sizes, {**first.inputs, **changed}, first.douts))
    if exercise.name == "word_embedding":
        one_word = torch.full_like(first.inputs["x"], 3)
        made.append(Case("one word, repeated", first.sizes, {**first.inputs, "x": one_word}, first.douts))
    if exercise.name in PUBLISHED:
        sizes, ranges = PUBLISHED[exercise.name]
        inputs = {name: _steps(*ranges[name], _shape(spec, sizes)) for name, spec in exercise.inputs.items()}
        douts = {name: _steps(-1, 1, _shape(spec, sizes)) for name, spec in exercise.outputs.items()}
        made.append(Case("the notebook's inputs", sizes, inputs, douts))
    return made


def _steps(first: float, last: float, shape: tuple[int, ...]) -> Tensor:
    return torch.linspace(first, last, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def _case(exercise: Exercise, name: str, sizes: Mapping[str, int], seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(spec: str) -> Tensor:
        return torch.randn(_shape(spec, sizes), generator=generator, dtype=torch.float64)

    N, T, V = sizes["N"], sizes["T"], sizes["V"]
    inputs: dict[str, Any] = {key: normal(spec) for key, spec in exercise.inputs.items()}
    words = torch.randint(3, V, (N, T), generator=generator)
    words[0, 0] = words[-1, -1]  # a word that is repeated
    if exercise.name == "word_embedding":
        inputs = {"x": words, **inputs}
    if exercise.name == "temporal_softmax_loss":
        mask = torch.rand(N, T, generator=generator) < 0.6
        mask[0, 0], mask[-1, -1] = True, N * T == 1
        inputs |= {"y": words, "mask": mask}
    if exercise.name.startswith("CaptioningRNN"):
        attends = exercise.name.endswith("attention")
        inputs["features"] = normal("N D 4 4" if attends else "N D")
        captions = torch.cat([torch.full((N, 1), START), words, torch.full((N, 1), END)], 1)
        end = T // 2 + 1
        captions[0, end], captions[0, end + 1 :] = END, NULL
        inputs["captions"] = captions
    douts = {
        key: normal(spec) if spec else torch.ones((), dtype=torch.float64) for key, spec in exercise.outputs.items()
    }
    return Case(name, sizes, inputs, douts)


def _shape(spec: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        int(letter) if letter.isdigit() else int(letter[:-1] or 1) * sizes[letter[-1]] for letter in spec.split()
    )
