"""Train a captioner: `python train.py --help` lists the settings."""

import sys

from torch_caption.command_line import train_config
from torch_caption.guard import guarded
from torch_caption.training import fit

if __name__ == "__main__":
    sys.exit(guarded(lambda: fit(train_config(sys.argv[1:]))))
