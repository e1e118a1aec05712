"""The process in which one solution is checked (`process.report_to_file`); `torch-caption check` starts it."""

import sys

from torch_caption.verify.solution.process import report_to_file

if __name__ == "__main__":
    report_to_file(sys.argv[1:])
