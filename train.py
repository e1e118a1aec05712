"""Train a captioner: `python train.py --help` lists the settings."""

import sys

from torch_caption.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
