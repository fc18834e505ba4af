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
        ``bfloat16`` is autocast, or what OpenVINO makes of it; with weights in bfloat16 everything
        is computed in it.
    channels_last : bool
        Memory format of weights and input.
    openvino : bool
        By OpenVINO, on a CPU.
    compiled : bool or None
        By ``torch.compile`` with CUDA graphs, on a GPU. None: it is not compiled, and whether that
        would be faster was not tried.
    """

    batch_size: int
    precision: str = "float32"
    channels_last: bool = False
    openvino: bool = False
    compiled: bool | None = None

    def __str__(self) -> str:
        parts = [self.precision]
        parts += ["channels last"] * self.channels_last
        parts += ["OpenVINO"] * self.openvino
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
        flags = (plan.channels_last, plan.openvino)
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
    """Return the plans that may be faster than `start`, in the order in which they are tried.

    On a CPU those by OpenVINO come first, in float32 before others. Those by torch are for models
    that OpenVINO cannot run; there, the most promising comes first.

    Parameters
    ----------
    start : Plan
        How the model is run to begin with.
    device : torch.device
        Where the model is.
    bfloat16 : bool, optional
        Whether bfloat16 is among them; by default where the hardware computes in it.
    """
    lower = _has_bfloat16(device) if bfloat16 is None else bfloat16
    channels_last = replace(start, channels_last=True)
    plans = []
    if device.type == "cpu":
        plans += [replace(start, openvino=True)]
        plans += [replace(start, precision="bfloat16", openvino=True)] * lower
    plans += [replace(channels_last, precision="bfloat16 weights")] * lower
    plans += [replace(channels_last, precision="bfloat16")] * lower
    return [*plans, channels_last]


def _has_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware computes in bfloat16; emulation is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    checks = [getattr(torch.cpu, name, None) for name in names]
    return device.type == "cpu" and any(bool(check()) for check in checks if check is not None)
