"""Backbone weights: PyTorch's names and layouts, files of ours and of others.

    load, open_file            from a weights file of any maker
    open_with_sum              from one that must be the one that is meant
    save, describe             to a safetensors file
    from_torch, to_torch       from and to a state dict of arrays
    fingerprint, torch_name    what weights are called

Files hold torchvision's names and layouts, so that PyTorch reads them too. None of
them, whoever wrote it, can run code here.
"""

from sfrik_jax.weights.files import (
    Backbone,
    describe,
    load,
    open_file,
    open_with_sum,
    save,
)
from sfrik_jax.weights.names import (
    Variables,
    fingerprint,
    from_torch,
    to_torch,
    torch_name,
)

__all__ = [
    "Backbone",
    "Variables",
    "describe",
    "fingerprint",
    "from_torch",
    "load",
    "open_file",
    "open_with_sum",
    "save",
    "to_torch",
    "torch_name",
]
