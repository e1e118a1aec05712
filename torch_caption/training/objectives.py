"""What a step of training learns: the captions that people wrote, or captions of the model's own and how good they are.

An objective says what an epoch goes through and makes a `Targets` of each batch. The loss is the same for both,
`CaptioningRNN.forward`, and so is its gradient, derived by hand: what the model itself says is drawn without a gradient
and comes back as words, which are integers, and as weights, which are constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torch_caption.config import TrainConfig
from torch_caption.data.dataset import Split
from torch_caption.data.vocabulary import NULL, START, UNK
from torch_caption.decoding import DecodingOptions, decode
from torch_caption.errors import ConfigError
from torch_caption.inference.captions import captioned_images
from torch_caption.metrics.scores import CiderReward, cider_weighs
from torch_caption.model.captioner import CaptioningRNN


@dataclass(frozen=True)
class Targets:
    """What `CaptioningRNN.forward` is given beside the features.

    Attributes:
        captions: (N, T) int64.
        read, weights: as in `CaptioningRNN.forward`.
        reward, greedy_reward: the mean CIDEr-D of the model's drawn and greedy captions, where it was rewarded.
    """

    captions: Tensor
    read: Tensor | None = None
    weights: Tensor | None = None
    reward: float | None = None
    greedy_reward: float | None = None

    def rewards(self) -> tuple[float, float, float]:
        """How many captions were rewarded, and the rewards of the drawn and of the greedy ones, summed over them."""
        if self.reward is None or self.greedy_reward is None:
            return 0, 0.0, 0.0
        N = len(self.captions)
        return N, self.reward * N, self.greedy_reward * N


class Objective(Protocol):
    """What training asks of an objective.

    Attributes:
        rows: what an epoch goes through; `Dataset.__getitems__` gives features (N, ...) and what `targets` takes.
        drops: whether the model drops and smooths as in training while it learns.
    """

    rows: Dataset[tuple[Tensor, Tensor]]
    drops: bool

    def targets(self, model: CaptioningRNN, features: Tensor, batch: Tensor, epoch: int) -> Targets:
        """The targets of a batch, in the epoch of that number, counted from 0."""
        ...

    def named(self, rows: Sequence[int], *, images: bool = False) -> str:
        """What the rows are in the split, and of which images, for a message."""
        ...


def make_objective(config: TrainConfig, train: Split) -> Objective:
    """The configuration's objective over the training split."""
    return SelfCritical(config, train) if config.objective == "scst" else Likelihood(config, train)


def rows_of_epoch(config: TrainConfig, train: Split) -> int:
    """How many rows an epoch goes through: captions, or in self-critical training their images."""
    return len(captioned_images(train)) if config.objective == "scst" else len(train)


class Likelihood:
    """Maximum likelihood: each word of a caption after the words before it, once a caption and epoch.

    With scheduled sampling some of those are the model's own (see `own_words`), ever more of them: none in the first
    epoch, the share `scheduled_sampling` in the last, linearly between.
    """

    drops = True

    def __init__(self, config: TrainConfig, train: Split) -> None:
        self.rows: Dataset[tuple[Tensor, Tensor]] = train
        self._train = train
        self._share = config.scheduled_sampling
        self._last = max(config.epochs - 1, 1)

    def targets(self, model: CaptioningRNN, features: Tensor, batch: Tensor, epoch: int) -> Targets:
        """The captions (N, T), and the words to read instead of their own where some are drawn."""
        share = self._share * min(epoch / self._last, 1)
        return Targets(batch, own_words(model, features, batch, share) if share else None)

    def named(self, rows: Sequence[int], *, images: bool = False) -> str:
        """The rows of the split's captions, and of which images they are."""
        of = [f" (image {int(self._train.image_idxs[row])})" if images else "" for row in rows]
        return f"{_these('row', [f'{row}{image}' for row, image in zip(rows, of, strict=True)])} of {self._train.name}"


@torch.no_grad()
def own_words(model: CaptioningRNN, features: Tensor, captions: Tensor, share: float) -> Tensor:
    """The captions' words with a share of them replaced by words of the model's own (Bengio et al. 2015).

    Each word after <START> is replaced with the probability `share` by one that the model draws, from its distribution
    after all that it has read up to there, words of its own among it. The model learns to go on from its own mistakes,
    which it meets when it captions and never in a true caption. Nothing is differentiated through the draw: the loss of
    the true words given the words read has the gradient it always has, and takes a second pass.

    Args:
        model: it draws without dropout.
        features: (N, ...) of its images.
        captions: (N, T) int64, <START> first, <NULL> after <END>.

    Returns:
        (N, T-1) int64, to stand for captions[:, :-1].
    """
    read = captions[:, :-1].clone()
    replaced = torch.rand(read.shape, dtype=torch.float32, device=read.device) < share
    replaced &= captions[:, 1:] != model.null
    columns = replaced[:, 1:].any(0).nonzero().flatten().tolist()
    if not columns:
        return read
    stepper = model.stepper(read.numel())
    state = stepper.begin(features)
    blank = [idx for idx in (model.null, model.start) if idx is not None]
    for t in range(1, columns[-1] + 2):
        logits, state = stepper.step(read[:, t - 1], state)
        rows = replaced[:, t].nonzero().squeeze(1)
        if len(rows):
            logits = logits.index_select(0, rows).float()
            logits[:, blank] = -math.inf  # no caption has them where a word is read
            read[rows, t] = torch.multinomial(torch.softmax(logits, 1), 1).squeeze(1)
    return read


class SelfCritical:
    """Self-critical sequence training (Rennie et al. 2017), once an image and epoch.

    The aim is the expected reward of the captions c that the model draws, r being their CIDEr-D against the image's
    training captions. Its gradient is REINFORCE's, with the reward of the greedy caption g as the baseline:

        d E[r(c)] = E[(r(c) - r(g)) d log p(c)],     log p(c) = sum_t log p(c_t | c_1 .. c_t-1, image)

    so with one drawn caption an image the loss, to be lowered, is that of the drawn captions as if people had written
    them, each word weighted by the advantage r(c) - r(g): what the real mask of `temporal_affine_softmax_loss` does.
    The baseline depends on no drawn word, so it leaves the expectation as it is; it makes better than greedy the aim.

    The first draws are far worse than the greedy captions, and most of what is learnt of them is noise. So the run
    begins with scores divided by a temperature (see `CaptioningRNN.scale_logits_`); the greedy captions are the same.

    Dropout and smoothed labels are off: captions are drawn without them, and the gradient is that of the probability
    they were drawn with. (Dropped features are the input of all three, draw, baseline and loss.) <START> and <NULL> are
    never drawn; what probability they have is not counted in the draw and is in log p.

    <END> is a token to the reward, of references and captions alike. Without it a caption that breaks off after "with
    a" loses nothing, and that is what is learnt. <UNK> in a reference is some word that has no id: no caption can have
    said it, so it is rewarded nowhere.

    Raises:
        ConfigError: every reward would be 0, as of one image alone.
    """

    drops = False

    def __init__(self, config: TrainConfig, train: Split) -> None:
        self.rows: Dataset[tuple[Tensor, Tensor]] = CaptionedImages(train)
        self._train, self._images = train, captioned_images(train)
        self._max_length = config.max_length
        word_to_idx = train.vocabulary.word_to_idx
        self._start = word_to_idx[START]
        self._blank = {word_to_idx[NULL], self._start}
        unknown = {word_to_idx[UNK]: -1}
        references: dict[int, list[list[int]]] = {}
        for image, ids in zip(train.image_idxs.tolist(), train.captions.tolist(), strict=True):
            said = [unknown.get(idx, idx) for idx in ids if idx not in self._blank]
            references.setdefault(image, []).append(said)
        if not cider_weighs(references.values()):
            count = len(references)
            captions = "captions of one image alone" if count == 1 else f"the same captions for all {count} images"
            raise ConfigError(
                f"--objective scst: {train.name} has {captions}, so every reward would be 0: CIDEr weighs words by how "
                "many images lack them; train on more images"
            )
        self._reward = CiderReward(references)

    def targets(self, model: CaptioningRNN, features: Tensor, batch: Tensor, epoch: int) -> Targets:
        """Captions drawn for the images (N,), each word weighted by its caption's advantage."""
        stepper = model.stepper(2 * len(features) * self._max_length)
        drawn, greedy = (
            decode(stepper, features, model.token_ids(), DecodingOptions(method, self._max_length)).words.squeeze(1)
            for method in ("sampling", "greedy")
        )
        reward, baseline = (self.reward(batch.tolist(), words) for words in (drawn, greedy))
        captions = torch.cat([torch.full_like(drawn[:, :1], self._start), drawn], dim=1)
        weights = (reward - baseline).to(features).unsqueeze(1).expand(drawn.shape)
        return Targets(captions, None, weights, reward.mean().item(), baseline.mean().item())

    def named(self, rows: Sequence[int], *, images: bool = False) -> str:
        """The images, which an epoch goes through."""
        return f"{_these('image', [str(self._images[row]) for row in rows])} of {self._train.name}"

    def reward(self, images: Sequence[int], words: Tensor) -> Tensor:
        """The CIDEr-D (N,) float64 of captions (N, T), <END> counted, <NULL> not, each of an image of the split."""
        said = [[idx for idx in ids if idx not in self._blank] for ids in words.tolist()]
        return torch.from_numpy(self._reward(images, said))


def _these(what: str, names: Sequence[str]) -> str:
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}"


class CaptionedImages(Dataset[tuple[Tensor, Tensor]]):
    """The images of a split that have captions, each once: features and the image's index."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._images = torch.tensor(captioned_images(split), dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        features, images = self.__getitems__([row])
        return features[0], images[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The whole batch at once: features (N, D) float32 and images (N,) int64."""
        images = self._images[rows]
        return self._split.features_of(images), images
