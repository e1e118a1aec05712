"""The process in which one solution is checked (`process.main`); `torch-caption check` starts it."""

import sys

from torch_caption.verify.solution.process import main

if __name__ == "__main__":
    main(sys.argv[1:])
