"""Several captioners that caption as one: the mean of their log-probabilities at each step.

    log p(word) = sum_m log softmax(logits_m)[word] / M + const      over the M members, normalised over the words

A member has its own state, so cells, sizes, layers and features may differ; the ids of the words are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_caption import decoding
from torch_caption.decoding import Decoded, DecodingOptions, State, Stepper, TokenIds
from torch_caption.model.captioner import CaptioningRNN


class EnsembleStepper:
    """The steppers of several models of one vocabulary as one stepper; see `decoding.Stepper`.

    A batch is a tensor of indices: the features of a member may differ from another's in shape.

    Args:
        steppers: of the members.
        features: of each member, (N, ...), of the same N images.

    Attributes:
        constant: how many tensors at the end of the state belong to the image: those of all members.
    """

    def __init__(self, steppers: Sequence[Stepper], features: Sequence[Tensor]):
        self._steppers, self._features = steppers, features
        self._changing: list[int] = []  # how many tensors of each member's state are not constant
        self.constant = sum(stepper.constant for stepper in steppers)

    def begin(self, rows: Tensor) -> State:
        """Indices (n,) int64 of images -> the state: what changes of each member's, then what is constant of each."""
        pairs = zip(self._steppers, self._features, strict=True)
        states = [stepper.begin(features.index_select(0, rows)) for stepper, features in pairs]
        self._changing = [len(state) - s.constant for state, s in zip(states, self._steppers, strict=True)]
        return self._joined(states)

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """The last words (n,) int64 and the state -> the mean of the members' log-probabilities (n, V), and the state.

        The mean is float32 if all members compute in half precision.
        """
        log_probs, states = [], []
        for stepper, own in zip(self._steppers, self._of_each(state), strict=True):
            logits, after = stepper.step(words, own)
            log_probs.append(torch.log_softmax(logits, 1, dtype=torch.promote_types(logits.dtype, torch.float32)))
            states.append(after)
        return torch.stack(log_probs).mean(0), self._joined(states)

    def _joined(self, states: Sequence[State]) -> State:
        pairs = [*zip(states, self._changing, strict=True)]
        return (*(x for state, n in pairs for x in state[:n]), *(x for state, n in pairs for x in state[n:]))

    def _of_each(self, state: State) -> list[State]:
        """The inverse of `_joined`."""
        changing, constant = iter(state[: len(state) - self.constant]), iter(state[len(state) - self.constant :])
        return [
            (*(next(changing) for _ in range(n)), *(next(constant) for _ in range(stepper.constant)))
            for stepper, n in zip(self._steppers, self._changing, strict=True)
        ]


class Ensemble:
    """Several captioners as one.

    Args:
        models: at least one, in `eval()`, on one device.

    Raises:
        ValueError: there is none, or the ids of their words differ.
    """

    def __init__(self, models: Sequence[CaptioningRNN]):
        if not models or any(model.word_to_idx != models[0].word_to_idx for model in models):
            raise ValueError("the models of an ensemble have the same words with the same ids")
        self.models = models

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.models[0].device

    def token_ids(self) -> TokenIds:
        """As `CaptioningRNN.token_ids`."""
        return self.models[0].token_ids()

    def decode(
        self,
        features: Tensor | Sequence[Tensor],
        options: DecodingOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Captions of each image, as `CaptioningRNN.decode`. Log-probabilities are the ensemble's.

        Args:
            features: (N, ...) for all members, or those of each; converted to the device and dtype of the member.

        Raises:
            ValueError: as `CaptioningRNN.decode`, or the number of features is not that of the members, or they are of
                different numbers of images.
        """
        options = options or DecodingOptions()
        each = [features] * len(self.models) if isinstance(features, Tensor) else features
        if len(each) != len(self.models):
            raise ValueError(f"features must be a tensor or one for each of {len(self.models)} models, not {len(each)}")
        N = len(each[0])
        if any(len(x) != N for x in each):
            raise ValueError(f"features must be of the same images, not of {', '.join(str(len(x)) for x in each)}")
        pairs = [(model, x.to(model.device, model.dtype)) for model, x in zip(self.models, each, strict=True)]
        steppers = [model.stepper(N * options.rows * options.length) for model, _ in pairs]
        stepper = EnsembleStepper(steppers, [x for _, x in pairs])
        rows = torch.arange(N, device=self.device)
        return decoding.decode(stepper, rows, self.token_ids(), options, generator)
