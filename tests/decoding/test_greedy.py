"""Decoding, over steppers whose captions are known, and over the captioner."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.operator_log import Watch
from tests.helpers.steppers import (
    CAPTIONER_IDS,
    END,
    IDS,
    NULL,
    START,
    TABLE,
    A,
    B,
    C,
    TableStepper,
    captioner,
    greedy,
    images,
    rows,
    sample,
    teacher_forced,
)
from torch_caption.decoding import select
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS


class Recurrent(torch.nn.Module):
    """A small random recurrent stepper."""

    constant = 0

    def __init__(self, V: int = 11, H: int = 7) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shapes = {"embed": (V, H), "recur": (H, H), "out": (H, V)}
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=generator)))

    def begin(self, features: Tensor) -> tuple[Tensor]:
        return (features,)

    def step(self, words: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        h = torch.tanh(self.embed[words] + state[0] @ self.recur)
        return h @ self.out, (h,)


def test_greedy_by_hand() -> None:
    """a (.5), then b (.6), then <END> (.35), for <NULL> (.4) may not be chosen; the probabilities stay unmasked."""
    decoded = greedy(TableStepper(), rows(1), **IDS, max_length=5)
    assert decoded.words.tolist() == [[A, B, END, NULL, NULL]]
    assert decoded.words.dtype == torch.int64
    torch.testing.assert_close(decoded.log_probs, torch.tensor([math.log(0.5 * 0.6 * 0.35)], dtype=torch.float64))


def test_rows_stop_each_at_their_end() -> None:
    features = rows(3)
    features[1, END] = math.log(9)  # .9 / 1.8 after <START>: ends at once
    features[2, END] = -math.inf  # never ends: a, b, a (.15 / .65), b
    stepper = TableStepper()
    decoded = greedy(stepper, features, **IDS, max_length=4)
    assert decoded.words.tolist() == [[A, B, END, NULL], [END, NULL, NULL, NULL], [A, B, A, B]]
    expected = [0.5 * 0.6 * 0.35, 0.9 / 1.8, 0.5 / 0.9 * (0.6 / 0.75) * (0.15 / 0.65) * (0.6 / 0.75)]
    torch.testing.assert_close(decoded.log_probs.exp(), torch.tensor(expected, dtype=torch.float64))
    assert stepper.steps == 4
    assert stepper.rows == [3, 2, 2, 1]  # an ended row costs nothing more


def test_rows_of_a_state_can_be_left_out_repeated_and_reordered() -> None:
    state = torch.arange(3), torch.arange(6).reshape(3, 2)
    taken = select(state, torch.tensor([2, 0, 2]))
    assert taken[0].tolist() == [2, 0, 2]
    assert taken[1].tolist() == [[4, 5], [0, 1], [4, 5]]


def test_the_loop_stops_when_all_rows_have() -> None:
    stepper = TableStepper()
    assert greedy(stepper, rows(2), **IDS, max_length=100).words.shape == (2, 100)
    assert stepper.steps == 3


@pytest.mark.parametrize("end", [None, 99])
def test_without_an_end_every_row_runs_to_max_length(end: int | None) -> None:
    """<END> is then a word like another: after b it is followed by c for ever. An id >= V never comes."""
    decoded = greedy(TableStepper(), rows(1), start=START, end=end, null=NULL, max_length=6)
    assert decoded.words.tolist() == [[A, B, END, C, C, C]]
    torch.testing.assert_close(decoded.log_probs.exp(), torch.tensor([0.5 * 0.6 * 0.35], dtype=torch.float64))


def test_null_that_is_also_the_end_is_a_choice() -> None:
    decoded = greedy(TableStepper(), rows(1), start=START, end=NULL, null=NULL, max_length=4)
    assert decoded.words.tolist() == [[A, B, NULL, NULL]]
    torch.testing.assert_close(decoded.log_probs.exp(), torch.tensor([0.5 * 0.6 * 0.4], dtype=torch.float64))


def test_the_first_of_equal_words_is_chosen() -> None:
    equal = TableStepper([[1 / 6] * 6] * 6)
    assert greedy(equal, rows(1), **IDS, max_length=2).words.tolist() == [[END, NULL]]
    for limits in ({"top_k": 1}, {"top_p": 1e-9}, {"top_k": 1, "top_p": 0.5}):
        assert sample(equal, rows(1), **IDS, max_length=2, **limits).words.tolist() == [[END, NULL]]


DRAWN = {  # kept words after <START> -> their probabilities
    "plain": ({}, {END: 0.1 / 0.9, A: 0.5 / 0.9, B: 0.3 / 0.9}),
    "temperature 2": (
        {"temperature": 2.0},
        {w: p**0.5 / (0.1**0.5 + 0.5**0.5 + 0.3**0.5) for w, p in ((END, 0.1), (A, 0.5), (B, 0.3))},
    ),
    "temperature 1/2": ({"temperature": 0.5}, {w: p * p / 0.35 for w, p in ((END, 0.1), (A, 0.5), (B, 0.3))}),
    "top_k 2": ({"top_k": 2}, {A: 0.5 / 0.8, B: 0.3 / 0.8}),
    "top_k beyond V": ({"top_k": 60}, {END: 0.1 / 0.9, A: 0.5 / 0.9, B: 0.3 / 0.9}),
    "top_p .5": ({"top_p": 0.5}, {A: 1.0}),  # a alone has .556
    "top_p .6": ({"top_p": 0.6}, {A: 0.5 / 0.8, B: 0.3 / 0.8}),
    "top_p 1": ({"top_p": 1.0}, {END: 0.1 / 0.9, A: 0.5 / 0.9, B: 0.3 / 0.9}),
    "top_p of top_k": ({"top_k": 2, "top_p": 0.62}, {A: 1.0}),  # of two words a has .625
    "top_p of tempered": ({"temperature": 0.5, "top_p": 0.9}, {A: 0.25 / 0.34, B: 0.09 / 0.34}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_frequencies(name: str) -> None:
    """20,000 first words follow the exact distribution: chi-square is below 18.4, its 99.99 % point at 2 degrees."""
    options, expected = DRAWN[name]
    n = 20_000
    decoded = sample(
        TableStepper(), rows(n), **IDS, max_length=1, generator=torch.Generator().manual_seed(1), **options
    )
    counts = torch.bincount(decoded.words[:, 0], minlength=6).tolist()
    assert sum(expected.values()) == pytest.approx(1)
    assert {word for word, count in enumerate(counts) if count} == set(expected)
    assert sum((counts[word] - n * p) ** 2 / (n * p) for word, p in expected.items()) < 18.4
    log_p = torch.tensor(TABLE[START], dtype=torch.float64).log()
    torch.testing.assert_close(decoded.log_probs, log_p[decoded.words[:, 0]])  # of the model, however it was drawn


@pytest.mark.parametrize(
    "options",
    [{"top_k": 1}, {"top_p": 1e-12}, {"temperature": 1e-4}, {"temperature": 1e-320}, {"top_k": 1, "temperature": 1e6}],
)
def test_limits_of_sampling_are_greedy(options: dict[str, float]) -> None:
    stepper, features = Recurrent(), torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    expected = greedy(stepper, features, **IDS, max_length=12)
    decoded = sample(stepper, features, **IDS, max_length=12, **options)
    assert torch.equal(decoded.words, expected.words)
    assert torch.equal(decoded.log_probs, expected.log_probs)


@pytest.mark.parametrize("options", [None, {}, {"temperature": 1.7}, {"top_k": 4}, {"top_p": 0.8}])
def test_log_probs_equal_a_teacher_forced_recomputation(options: dict[str, float] | None) -> None:
    stepper, features = Recurrent().double(), torch.randn(60, 7, generator=torch.Generator().manual_seed(0)).double()
    if options is None:
        decoded = greedy(stepper, features, **IDS, max_length=9)
    else:
        generator = torch.Generator().manual_seed(5)
        decoded = sample(stepper, features, **IDS, max_length=9, generator=generator, **options)
    words = decoded.words
    expected = teacher_forced(stepper, features, words, END)
    torch.testing.assert_close(decoded.log_probs, expected, rtol=1e-12, atol=1e-12)
    ended = (words == END).any(1)
    assert ended.any()
    assert not ended.all()  # both ways to stop are among the rows
    for row in words.tolist():
        spoken = row[: row.index(END)] if END in row else row
        assert START not in row
        assert NULL not in spoken
        assert set(row[len(spoken) + 1 :]) <= {NULL}


def test_the_same_seed_gives_the_same_samples() -> None:
    stepper, features = Recurrent(), torch.randn(30, 7, generator=torch.Generator().manual_seed(0))

    def words(seed: int) -> Tensor:
        return sample(stepper, features, **IDS, generator=torch.Generator().manual_seed(seed)).words

    assert torch.equal(words(1), words(1))
    assert not torch.equal(words(1), words(2))
    before = torch.get_rng_state()
    words(3)
    assert torch.equal(before, torch.get_rng_state())  # a generator of one's own leaves the global one alone
    torch.manual_seed(4)
    first = sample(stepper, features, **IDS).words
    torch.manual_seed(4)
    assert torch.equal(first, sample(stepper, features, **IDS).words)


def test_a_row_alone_decodes_as_in_the_batch() -> None:
    stepper, features = Recurrent(), torch.randn(25, 7, generator=torch.Generator().manual_seed(0))
    together = greedy(stepper, features, **IDS, max_length=15)
    for row in range(25):
        alone = greedy(stepper, features[row : row + 1], **IDS, max_length=15)
        assert torch.equal(alone.words[0], together.words[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_scores_are_summed_in_float32(dtype: torch.dtype) -> None:
    class Half(TableStepper):
        def step(self, words: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            scores, state = super().step(words, state)
            return scores.to(dtype), state

    for decoded in (greedy(Half(), rows(1), **IDS), sample(Half(), rows(1), **IDS, top_k=1, top_p=0.9)):
        assert decoded.log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert decoded.log_probs.item() == pytest.approx(math.log(0.5 * 0.6 * 0.35), abs=0.02)


def test_a_stopped_row_may_hold_nan() -> None:
    table = [[math.nan] * 6, *TABLE[1:]]
    features = rows(2)
    features[1, END] = 20.0
    for decoded in (
        greedy(TableStepper(table), features, **IDS),
        sample(TableStepper(table), features, **IDS, top_k=1),
    ):
        assert decoded.words[0, :3].tolist() == [A, B, END]
        assert decoded.log_probs.isfinite().all()


# The captioner, prepared ----------------------------------------------------------------------------------------------


def plain_loop(model: CaptioningRNN, features: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Greedy captions as one would write it first: all rows to the last step, through `begin` and `step`."""
    state = model.begin(features)
    last = torch.ones(len(features), dtype=torch.int64)
    words, total = [], torch.zeros(len(features), dtype=features.dtype)
    ended = torch.zeros(len(features), dtype=torch.bool)
    for _ in range(max_length):
        scores, state = model.step(last, state)
        log_p = torch.log_softmax(scores, 1)
        allowed = log_p.clone()
        allowed[:, :2] = -math.inf
        last = torch.where(ended, 0, allowed.argmax(1))
        total = total + torch.where(ended, 0, log_p.gather(1, last.unsqueeze(1)).squeeze(1))
        ended = ended | (last == 2)
        words.append(last)
    return torch.stack(words, 1), total


@pytest.mark.parametrize("cell_type", CELLS)
@given(
    N=st.integers(0, 9),
    V=st.integers(4, 40),
    H=st.integers(1, 9),
    seed=st.integers(0, 999),
    table=st.booleans(),
    num_layers=st.integers(1, 3),
)
def test_a_prepared_captioner_decodes_the_same(
    cell_type: str, N: int, V: int, H: int, seed: int, table: bool, num_layers: int
) -> None:
    """Word by word in float64, with a table of words and without, whatever rows end when."""
    model = captioner(cell_type, V=V, H=H, num_layers=num_layers)
    features = images(cell_type, N, seed)
    stepper = model.stepper(10**6 if table else 0)
    decoded = greedy(stepper, features, **CAPTIONER_IDS, max_length=12)
    words, log_probs = (x.detach() for x in plain_loop(model, features, 12))
    assert torch.equal(decoded.words, words)
    torch.testing.assert_close(decoded.log_probs, log_probs, rtol=1e-12, atol=1e-12, check_dtype=N > 0)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("table", [0, 10**6])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_prepared_step_takes_no_memory_of_its_own(cell_type: str, table: int, num_layers: int) -> None:
    n, V, H = 16, 300, 32
    model = captioner(cell_type, V=V, H=H, dtype=torch.float32, num_layers=num_layers)
    stepper = model.stepper(table)
    state = stepper.begin(torch.randn(n, 5))
    words = torch.randint(2, V, (n,))
    scores, state = stepper.step(words, state)
    memory = {x.untyped_storage().data_ptr() for x in (scores, *state)}
    for m in (n, n - 3):
        state = select(state, torch.arange(m))
        memory |= {x.untyped_storage().data_ptr() for x in state}
        with Watch(m * H * 4) as watch:
            scores, state = stepper.step(words[:m], state)
        assert memory >= {x.untyped_storage().data_ptr() for x in (scores, *state)}
        assert watch.operators.count("new_empty") == watch.operators.count("empty") == 0
        assert not scores.requires_grad


@pytest.mark.parametrize("cell_type", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_prepared_captioner_in_half_precision(cell_type: str, num_layers: int) -> None:
    """Under autocast and as a model of its own; the log-probabilities are float32."""
    model = captioner(cell_type, dtype=torch.float32, num_layers=num_layers)
    features = images(cell_type, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under = greedy(model.stepper(0), features, **CAPTIONER_IDS, max_length=9)
    own = model.bfloat16()
    decoded = greedy(own.stepper(0), features.bfloat16(), **CAPTIONER_IDS, max_length=9)
    assert under.log_probs.dtype == decoded.log_probs.dtype == torch.float32
    assert torch.equal(under.words, decoded.words)


def test_a_prepared_attention_captioner_keeps_each_rows_image() -> None:
    """Rows left out, repeated and reordered between steps are decoded as alone."""
    model, features = captioner("attention"), images("attention", 4)
    rows = torch.tensor([3, 0, 3, 2])
    stepper = model.stepper(0)
    words = torch.tensor([5, 6, 7, 8])
    _, state = stepper.step(torch.ones(4, dtype=torch.int64), stepper.begin(features))
    scores, _ = stepper.step(words, select(state, rows))
    for place, row in enumerate(rows.tolist()):
        _, alone = model.step(torch.ones(1, dtype=torch.int64), model.begin(features[row : row + 1]))
        expected, _ = model.step(words[place : place + 1], alone)
        torch.testing.assert_close(scores[place], expected[0].detach(), rtol=1e-12, atol=1e-12)
