"""Names of layers and units in reports; read when pytest starts, so nothing heavy is imported."""

from __future__ import annotations


def asked_layer(layer: str) -> str:
    """Return the layer that was asked for: "logits" for a further output "logits[shape]"."""
    return layer.partition("[")[0]


def unit_label(name: str, index: int) -> str:
    """Return name and index: ``carton [478]``, or ``unit 937`` where there is no name."""
    return f"unit {index}" if name == str(index) else f"{name} [{index}]"
