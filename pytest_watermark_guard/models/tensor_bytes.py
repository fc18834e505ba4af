"""The bytes that tell a tensor from another one, wherever and however its values lie in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class NoValuesError(Exception):
    """A tensor on the meta device, or without a shape yet."""


def tensor_bytes(tensor: Tensor) -> Iterator[bytes | memoryview]:
    """Give a tensor's type, shape and values.

    Raises
    ------
    NoValuesError
        If it has none.
    """
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        kind = type(tensor).__name__
        raise NoValuesError(f"a {kind} on the {tensor.device} device has no values")
    tensor = tensor.detach()
    yield f"{tensor.dtype}{[*tensor.shape]}".encode()
    if hasattr(tensor, "__tensor_flatten__"):  # subclasses say what they are made of
        names, context = tensor.__tensor_flatten__()
        for name in names:
            yield name.encode()
            yield from tensor_bytes(getattr(tensor, name))
        yield repr(context).encode()
    elif tensor.is_quantized:
        yield from tensor_bytes(tensor.int_repr())
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield f"{tensor.q_scale()!r} {tensor.q_zero_point()}".encode()
        else:
            yield from tensor_bytes(tensor.q_per_channel_scales())
            yield from tensor_bytes(tensor.q_per_channel_zero_points())
            yield f"{tensor.q_per_channel_axis()}".encode()
    elif tensor.is_nested:
        for part in tensor.unbind():
            yield from tensor_bytes(part)
    elif tensor.layout is not torch.strided:
        yield str(tensor.layout).encode()
        yield from tensor_bytes(tensor.to_dense())
    else:
        plain = tensor.resolve_conj().resolve_neg().cpu().contiguous()
        # As bytes, because NumPy has no bfloat16.
        yield plain.reshape(-1).view(torch.uint8).numpy().data
