"""Train a captioner: `python train.py --help` lists the settings."""

import sys

from torch_caption.ending import guarded


def main() -> None:
    from torch_caption.command_line import train_config  # torch takes seconds to load: Ctrl-C is heeded meanwhile
    from torch_caption.distributed import several
    from torch_caption.matmul import prefer_onednn
    from torch_caption.training import fit

    prefer_onednn()
    several(lambda: fit(*train_config(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(guarded(main))
