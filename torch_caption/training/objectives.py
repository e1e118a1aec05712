"""Training objectives: maximum likelihood of the reference captions, and self-critical training (SCST).

An objective defines the rows of an epoch and makes `Targets` of each batch. Both have the same loss,
`CaptioningRNN.forward`, and the same hand-derived gradient: captions of the model are sampled without a gradient and
enter the loss as words, which are integers, and as weights, which are constants.
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
from torch_caption.metrics.cider import CiderReward, cider_weighs
from torch_caption.model.captioner import CaptioningRNN


@dataclass(frozen=True)
class Targets:
    """The arguments of `CaptioningRNN.forward`.

    Attributes:
        features: (N, D) or (N, D, a, a).
        captions: (N, T) int64.
        inputs, weights: as in `CaptioningRNN.forward`.
        rewards: (N,) float64, the CIDEr-D of the captions, in self-critical training.
    """

    features: Tensor
    captions: Tensor
    inputs: Tensor | None = None
    weights: Tensor | None = None
    rewards: Tensor | None = None

    def rewarded(self) -> tuple[float, float]:
        """The number of rewarded captions, and the sum of their rewards."""
        return (0, 0.0) if self.rewards is None else (len(self.rewards), self.rewards.sum().item())


class Objective(Protocol):
    """The interface of an objective.

    Attributes:
        rows: of an epoch; `Dataset.__getitems__` returns features (N, ...) and the batch argument of `targets`.
        drops: whether dropout and label smoothing are on.
    """

    rows: Dataset[tuple[Tensor, Tensor]]
    drops: bool

    def targets(self, model: CaptioningRNN, features: Tensor, batch: Tensor, epoch: int) -> Targets:
        """The targets of a batch in an epoch, counted from 0."""
        ...

    def named(self, rows: Sequence[int], *, images: bool = False) -> str:
        """The rows in the split, and optionally their images, for a message."""
        ...


def make_objective(config: TrainConfig, train: Split) -> Objective:
    """The configuration's objective over the training split."""
    return SelfCritical(config, train) if config.objective == "scst" else Likelihood(config, train)


def rows_of_epoch(config: TrainConfig, train: Split) -> int:
    """The number of rows of an epoch: captions, or in self-critical training their images."""
    return len(captioned_images(train)) if config.objective == "scst" else len(train)


class Likelihood:
    """Maximum likelihood: each word of a caption given the previous ones (teacher forcing).

    With scheduled sampling some input tokens are sampled from the model (see `sample_inputs`): the probability rises
    linearly from 0 in the first epoch to `scheduled_sampling` in the last.
    """

    drops = True

    def __init__(self, config: TrainConfig, train: Split) -> None:
        self.rows: Dataset[tuple[Tensor, Tensor]] = train
        self._train = train
        self._final = config.scheduled_sampling
        self._last = max(config.epochs - 1, 1)

    def targets(self, model: CaptioningRNN, features: Tensor, batch: Tensor, epoch: int) -> Targets:
        """The captions (N, T), and the input tokens if some are sampled."""
        probability = self._final * min(epoch / self._last, 1)
        return Targets(features, batch, sample_inputs(model, features, batch, probability) if probability else None)

    def named(self, rows: Sequence[int], *, images: bool = False) -> str:
        """The rows of the split's captions, and their images."""
        of = [f" (image {int(self._train.image_idxs[row])})" if images else "" for row in rows]
        return f"{_these('row', [f'{row}{image}' for row, image in zip(rows, of, strict=True)])} of {self._train.name}"


@torch.no_grad()
def sample_inputs(model: CaptioningRNN, features: Tensor, captions: Tensor, probability: float) -> Tensor:
    """Input tokens of scheduled sampling (Bengio et al. 2015).

    Each word after <START> is replaced with the given probability by a sample from the model, given all previous input
    tokens, including samples. So training includes inputs with the model's errors, which occur in decoding but not in
    reference captions. Sampling has no gradient: the loss of the reference words given the input tokens has its usual
    gradient, in a second pass.

    Args:
        model: samples without dropout.
        features: (N, ...) of the images.
        captions: (N, T) int64, <START> first, <NULL> after <END>.

    Returns:
        (N, T-1) int64, instead of captions[:, :-1].
    """
    inputs = captions[:, :-1].clone()
    replaced = torch.rand(inputs.shape, dtype=torch.float32, device=inputs.device) < probability
    replaced &= captions[:, 1:] != model.null
    columns = replaced[:, 1:].any(0).nonzero().flatten().tolist()
    if not columns:
        return inputs
    stepper = model.stepper(inputs.numel())
    state = stepper.begin(features)
    blank = [idx for idx in (model.null, model.start) if idx is not None]
    for t in range(1, columns[-1] + 2):
        logits, state = stepper.step(inputs[:, t - 1], state)
        rows = replaced[:, t].nonzero().squeeze(1)
        if len(rows):
            logits = logits.index_select(0, rows).float()
            logits[:, blank] = -math.inf  # not valid as input tokens
            inputs[rows, t] = torch.multinomial(torch.softmax(logits, 1), 1).squeeze(1)
    return inputs


class SelfCritical:
    """Self-critical sequence training (Rennie et al. 2017), each image once per epoch.

    The objective is the expected reward r of sampled captions c, their CIDEr-D against the image's training captions.
    Its gradient is REINFORCE's, with a baseline b:

        d E[r(c)] = E[(r(c) - b) d log p(c)],     log p(c) = sum_t log p(c_t | c_1 .. c_t-1, image)

    so the loss is the cross-entropy of the sampled captions, with each word weighted by the advantage r(c) - b of its
    caption: the real mask of `temporal_affine_softmax_loss`. Of each image `samples` captions are sampled, and the
    baseline of each is the mean reward of the others (Kool et al. 2019; Luo 2020), which needs no further caption. It
    does not depend on its caption, so it does not change the expectation; a caption with a reward above the others'
    becomes more probable.

    The first samples are far worse than the greedy captions, and their gradients are mostly noise. So the run starts
    with logits divided by a temperature (see `CaptioningRNN.scale_logits_`); the greedy captions do not change.

    Dropout and label smoothing are off: captions are sampled without them, and the gradient must be that of the
    sampling distribution. (Feature dropout applies to the input of both, sample and loss.) <START> and
    <NULL> are never sampled; their probability is excluded in sampling but included in log p.

    <END> is a token for the reward, in references and captions. Without it a caption that ends with "with a" loses no
    reward, and training converges to such captions. <UNK> in a reference is a word without an id, which no caption can
    contain, so it is never rewarded.

    Raises:
        ConfigError: all rewards would be 0, as with only one image.
    """

    drops = False

    def __init__(self, config: TrainConfig, train: Split) -> None:
        self.rows: Dataset[tuple[Tensor, Tensor]] = CaptionedImages(train)
        self._train, self._images = train, captioned_images(train)
        self._max_length, self._samples = config.max_length, config.samples
        word_to_idx = train.vocabulary.word_to_idx
        self._start = word_to_idx[START]
        self._blank = {word_to_idx[NULL], self._start}
        unknown = {word_to_idx[UNK]: -1}
        references: dict[int, list[list[int]]] = {}
        for image, ids in zip(train.image_idxs.tolist(), train.captions.tolist(), strict=True):
            tokens = [unknown.get(idx, idx) for idx in ids if idx not in self._blank]
            references.setdefault(image, []).append(tokens)
        if not cider_weighs(references.values()):
            count = len(references)
            captions = "captions of only one image" if count == 1 else f"the same captions for all {count} images"
            raise ConfigError(
                f"--objective scst: {train.name} has {captions}, so all rewards would be 0: CIDEr weights words by the "
                "images without them; train on more images"
            )
        self._reward = CiderReward(references)

    def targets(self, model: CaptioningRNN, features: Tensor, batch: Tensor, epoch: int) -> Targets:
        """`samples` captions of each image (n,), each word weighted by the advantage of its caption."""
        K = self._samples
        sampling = DecodingOptions("sampling", self._max_length, samples=K)
        words = decode(model.stepper(K * len(features) * self._max_length), features, model.token_ids(), sampling).words
        sampled = words.flatten(0, 1)  # the K captions of an image are neighbours
        rewards = self.reward(batch.repeat_interleave(K).tolist(), sampled)
        advantages = (K * rewards - rewards.view(-1, K).sum(1).repeat_interleave(K)) / (K - 1)
        captions = torch.cat([torch.full_like(sampled[:, :1], self._start), sampled], dim=1)
        weights = advantages.to(features).unsqueeze(1).expand(sampled.shape)
        return Targets(features.repeat_interleave(K, 0), captions, None, weights, rewards)

    def named(self, rows: Sequence[int], *, images: bool = False) -> str:
        """The images of the rows."""
        return f"{_these('image', [str(self._images[row]) for row in rows])} of {self._train.name}"

    def reward(self, images: Sequence[int], words: Tensor) -> Tensor:
        """The CIDEr-D (N,) float64 of captions (N, T) of images of the split, including <END>, without <NULL>."""
        tokens = [[idx for idx in ids if idx not in self._blank] for ids in words.tolist()]
        return torch.from_numpy(self._reward(images, tokens))


def _these(what: str, names: Sequence[str]) -> str:
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}"


class CaptionedImages(Dataset[tuple[Tensor, Tensor]]):
    """The images of a split with captions: features and the index of the image."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._images = torch.tensor(captioned_images(split), dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        features, images = self.__getitems__([row])
        return features[0], images[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The whole batch: features (N, D) float32 and images (N,) int64."""
        images = self._images[rows]
        return self._split.features_of(images), images
