"""The program torch_caption.cli.demo with a small model of random weights, for its tests.

`python tests/helpers/demo_page.py FOLDER CELL`; the folder holds the pictures to choose from.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_caption.cli import demo
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.inference.explain import BEST_FIVE, Explainer
from torch_caption.io.exits import guarded
from torch_caption.model.captioner import CaptioningRNN

WORDS = ("a", "<b>bold</b>", "red", "green", "blue", "square", "circle", "on", "the", "left")
CELLS = ("lstm", "attention")


class Colours:
    """Mean colours of the picture's 3 x 3 fields, or of all of it: where a model can be shown pictures of any size."""

    def __init__(self, grid: bool) -> None:
        self._side = 3 if grid else 1

    def prepare(self, picture: Image.Image) -> Tensor:
        small = picture.resize((self._side, self._side), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, np.float32) / 64 - 2).permute(2, 0, 1)

    def make(self, prepared: list[Tensor]) -> Tensor:
        features = torch.stack(prepared)
        return features if self._side > 1 else features.flatten(1)


def explainer(cell_type: str) -> Explainer:
    vocabulary = Vocabulary(("<NULL>", "<START>", "<END>", "<UNK>", *WORDS))
    torch.manual_seed(0)
    model = CaptioningRNN(vocabulary.word_to_idx, 3, 8, 16, cell_type=cell_type).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return Explainer(model, vocabulary, {}, Colours(cell_type == "attention"), replace(BEST_FIVE, max_length=8))


def main(folder: Path, cell_type: str) -> int:
    demo.open_explainer = lambda config: (explainer(cell_type), "a model <of> random weights")
    demo.built_in = lambda: sorted(folder.glob("*.png"))
    return guarded(lambda: demo.serve(demo.DemoConfig(port=0)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
