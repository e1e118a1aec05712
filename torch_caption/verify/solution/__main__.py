"""The process in which one solution is checked (`process.main`); `torch-caption check` starts it."""

import sys

from torch_caption.verify.solution.process import main

main(sys.argv[1:])
