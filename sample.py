"""Caption images with a trained model: `python sample.py --help` lists the settings."""

import sys

from torch_caption.command_line import sample_config
from torch_caption.ending import guarded
from torch_caption.sampling import run

if __name__ == "__main__":
    sys.exit(guarded(lambda: run(sample_config(sys.argv[1:])), ["--beam-size", "--samples"]))
