"""Names of layers in reports."""

from __future__ import annotations


def asked_layer(layer: str) -> str:
    """Return the layer that was asked for: "logits" for a further output "logits[shape]"."""
    return layer.partition("[")[0]
