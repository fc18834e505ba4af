"""What all models have in common that torch does not run itself."""

from __future__ import annotations

import torch
from torch import nn


class AdaptedModel(nn.Module):
    """Runs something else than torch modules: it has no parameters, and no hook sees inside.

    Attributes
    ----------
    identity : str
        Tells it from all others in keys of caches; empty where nothing can.
    """

    identity: str = ""

    @property
    def called(self) -> str:
        """What messages and reports call it."""
        raise NotImplementedError

    @property
    def computes(self) -> str:
        """In which precision it computes, which no setting changes."""
        raise NotImplementedError

    def placed(self, device: torch.device) -> AdaptedModel:
        """Return the model on a device; `SettingsError` if it cannot run there."""
        raise NotImplementedError

    def placed_by_default(self, device: torch.device) -> tuple[AdaptedModel, torch.device, str]:
        """Return the model and where it runs if nobody named a device, and why not on `device`."""
        raise NotImplementedError


def called(module: nn.Module) -> str:
    """Return what messages call a model."""
    return module.called if isinstance(module, AdaptedModel) else type(module).__name__
