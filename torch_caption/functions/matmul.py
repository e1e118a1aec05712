"""Which library multiplies float32 matrices on a CPU.

torch has two: MKL, which it takes by default, and oneDNN. With large factors oneDNN is up to 1.5 times as fast: in a
step of training, or captions of many images at once. But each of its calls costs about 20 microseconds more, and the
caption of one image takes 1.4 to 2.7 times as long. The choice is a setting of the whole process, which no function of
this package changes. A program makes it once, at its start: `train.py` and `python -m torch_caption evaluate` prefer
oneDNN; `sample.py` and the others leave torch as it is.
"""

from __future__ import annotations

from typing import Any

import torch

_MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # the module makes its attributes itself


def prefer_onednn() -> bool:
    """From now on let oneDNN multiply float32 matrices on the CPU, in the whole process, where it is as exact as MKL.

    torch reaches oneDNN through `torch.backends.mkldnn.matmul.fp32_precision = "bf16"`, which allows bfloat16 inside.
    oneDNN makes use of that where the processor multiplies bfloat16 matrices in hardware (AMX) and computes in float32
    elsewhere. A test product shows which, and for bfloat16 the setting is restored. float64, half precision and GPUs
    are not affected.

    Call it once, before other threads compute. `torch.get_float32_matmul_precision()`, which the setting outdates, then
    raises an error of torch's own; the setting itself can be read. To undo it set it to "none".

    Returns:
        whether oneDNN is chosen.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    x, w = (torch.randn(256, 256, generator=generator, dtype=torch.float32, device="cpu") for _ in range(2))
    exact = x.double() @ w.double()
    before = _MATMUL.fp32_precision
    _MATMUL.fp32_precision = "ieee"  # float32, regardless of the previous setting
    allowed = 4 * (x @ w - exact).abs().max()  # bfloat16 inside would err a thousand times more
    _MATMUL.fp32_precision = "bf16"
    chosen = bool((x @ w - exact).abs().max() <= allowed)
    if not chosen:
        _MATMUL.fp32_precision = before
    return chosen
