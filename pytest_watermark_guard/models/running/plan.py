"""One way to run a model, and which ways are worth trying."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

PRECISIONS = ("float32", "bfloat16", "bfloat16 weights")


@dataclass(frozen=True)
class Plan:
    """One way to run a model.

    Attributes
    ----------
    batch_size : int
        Images in a forward pass.
    precision : {"float32", "bfloat16", "bfloat16 weights"}
        ``bfloat16`` is autocast; with weights in bfloat16 everything is computed in it.
    folded : bool
        Batch norm is folded into the convolutions before it.
    channels_last : bool
        Memory format of weights and input.
    fused : bool
        Convolutions compute the activation after them; on a CPU, and not under autocast.
    compiled : bool or None
        By ``torch.compile``, on a GPU with CUDA graphs. None: it is not compiled, and whether that
        would be faster was not tried.
    """

    batch_size: int
    precision: str = "float32"
    folded: bool = False
    channels_last: bool = False
    fused: bool = False
    compiled: bool | None = None

    def __str__(self) -> str:
        parts = [self.precision]
        parts += ["batch norm folded"] * self.folded
        parts += ["channels last"] * self.channels_last
        parts += ["activations fused"] * self.fused
        parts += ["compiled"] * bool(self.compiled)
        return ", ".join(parts)

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the input."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Read what `to_dict` gave; anything else raises some error."""
        plan = cls(**data)
        flags = (plan.folded, plan.channels_last, plan.fused)
        if not (
            type(plan.batch_size) is int
            and plan.batch_size >= 1
            and plan.precision in PRECISIONS
            and all(isinstance(flag, bool) for flag in flags)
            and (plan.compiled is None or isinstance(plan.compiled, bool))
        ):
            raise ValueError("no plan")
        return plan


def faster_plans(start: Plan, device: torch.device, *, bfloat16: bool | None = None) -> list[Plan]:
    """Return the plans that may be faster than `start`.

    First all at once of memory format, folded batch norm, fused activations and, where the
    hardware has it, bfloat16; then with some of them left out.

    Parameters
    ----------
    start : Plan
        How the model is run to begin with.
    device : torch.device
        Where the model is.
    bfloat16 : bool, optional
        Whether bfloat16 is among them; by default where the hardware computes in it.
    """
    unfused = replace(start, folded=True, channels_last=True)
    fused = replace(unfused, fused=device.type == "cpu")
    lower_precision = []
    if _has_bfloat16(device) if bfloat16 is None else bfloat16:
        lower_precision = [
            replace(fused, precision="bfloat16 weights"),
            replace(unfused, precision="bfloat16 weights"),
            replace(unfused, precision="bfloat16"),
        ]
    single = [replace(start, folded=True), replace(start, channels_last=True)]
    return [*dict.fromkeys([*lower_precision, fused, unfused, *single])]  # each once


def _has_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware computes in bfloat16; emulation is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    checks = [getattr(torch.cpu, name, None) for name in names]
    return device.type == "cpu" and any(bool(check()) for check in checks if check is not None)
