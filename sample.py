"""Caption images with a trained model: `python sample.py --help` lists the settings."""

import sys

from torch_caption.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
