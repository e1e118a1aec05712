"""What operators run, and what memory is alive meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "mv", "dot"}


class Watch(TorchDispatchMode):
    """Records the names of all operators, and the most storages of `bytes` or more that were alive at one time.

    Storages from before are not seen.
    """

    def __init__(self, bytes: int = 1):
        super().__init__()
        self.bytes = bytes
        self.operators: list[str] = []
        self.most_alive = 0
        self._storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators.append(func.overloadpacket.__name__)
        for leaf in torch.utils._pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() >= self.bytes:
                storage = leaf.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage)
        self._storages = {key: ref for key, ref in self._storages.items() if not ref.expired()}
        self.most_alive = max(self.most_alive, len(self._storages))
        return out

    @property
    def products(self) -> int:
        """How many matrix products ran."""
        return sum(name in PRODUCTS for name in self.operators)
