"""Telling one backbone's weights from another's, whatever head is on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from pytest_watermark_guard.models.tensor_bytes import tensor_bytes

OWN_BUFFER = "_wm_"
"""How the names of buffers begin that this package adds to a model for a while."""


def weights_identity(module: nn.Module, head: Sequence[str]) -> str:
    """Return a digest of a model's weights without those of its head.

    Parameters
    ----------
    module : torch.nn.Module
    head : sequence of str
        Qualified names of the modules that make the logits.

    Returns
    -------
    str
        Hexadecimal SHA-256 over type, shape and values of all floating-point parameters and
        buffers, in the model's order. Their names do not count: a model in a wrapper is the same.
    """
    total = hashlib.sha256()
    for tensor in _backbone_tensors(module, head):
        for part in tensor_bytes(tensor):
            total.update(part)
    return total.hexdigest()


def _backbone_tensors(module: nn.Module, head: Sequence[str]) -> Iterator[Tensor]:
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, tensor in tensors:
            owner, _, attribute = name.rpartition(".")
            in_head = any(owner == part or owner.startswith(f"{part}.") for part in head)
            own = attribute.startswith(OWN_BUFFER)
            if tensor.is_floating_point() and not in_head and not own:
                yield tensor
