"""Train a captioner: `python train.py --help` lists the settings."""

import sys

from torch_caption.command_line import guarded, train_config
from torch_caption.distributed import several
from torch_caption.training import fit

if __name__ == "__main__":
    sys.exit(guarded(lambda: several(lambda: fit(train_config(sys.argv[1:])))))
