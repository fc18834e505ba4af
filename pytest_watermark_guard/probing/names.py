"""What units are called."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.setting_values import split_allowed


def unit_names(
    units: Mapping[str, int],
    given: Sequence[str] | Mapping[int, str] | None,
    loaded: Sequence[str] | None,
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Name the units of every layer.

    Parameters
    ----------
    units : mapping of str to int
        Number of units by layer.
    given : sequence of str, or mapping of int to str, optional
        The caller's class names.
    loaded : sequence of str, optional
        Those that came with the weights.

    Returns
    -------
    names : dict of str to tuple of str
        By layer; a unit without a name is called by its index.
    notes : tuple of str
        What was assumed.

    Raises
    ------
    SettingsError
        If `given` does not name each logit once.
    """
    names = {layer: tuple(map(str, range(count))) for layer, count in units.items()}
    count = units.get("logits")
    if count is None:
        return names, ()
    if isinstance(given, Mapping):
        # As in transformers' id2label.
        given = [given[index] for index in sorted(given)]
    if given is not None:
        if isinstance(given, str) or len(given) != count:
            got = repr(given) if isinstance(given, str) else len(given)
            raise SettingsError(
                f"class_names must hold one name for each of the {count} logits, got {got}"
            )
        names["logits"] = tuple(map(str, given))
        return names, ()
    if loaded is not None and len(loaded) == count:
        names["logits"] = tuple(loaded)
        return names, ()
    if count == 1000:
        from torchvision.models import ResNet18_Weights

        names["logits"] = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
        return names, ("class names are assumed to be ImageNet's: the model has 1000 logits",)
    return names, ()


def matches_unit(
    entry: str, layer: str, index: int, names: Sequence[str], known: Collection[str]
) -> bool:
    """Tell whether an entry of ``allow`` means a unit.

    Parameters
    ----------
    entry : str
        ``layer:unit`` or a class name alone.
    layer : str
    index : int
        The unit.
    names : sequence of str
        Of all units in the layer.
    known : collection of str
        The same, fast to search: a number that is a name means that class.
    """
    if entry == names[index]:  # a class name may hold a colon itself
        return True
    of_layer, unit = split_allowed(entry)
    return of_layer in (None, layer) and unit == (names[index] if unit in known else str(index))


def allowing(layer: str, names: Sequence[str], allow: Collection[str]) -> dict[int, str]:
    """Return the first entry of ``allow`` that means a unit, for those units that one means."""
    known = frozenset(names) if allow else frozenset[str]()
    found = {}
    for index in range(len(names) if allow else 0):
        for entry in allow:
            if matches_unit(entry, layer, index, names, known):
                found[index] = entry
                break
    return found


def allowed_units(
    layer: str, names: Sequence[str], allow: Collection[str]
) -> npt.NDArray[np.bool_]:
    """Mark the units of a layer that ``allow`` means; shape [units]."""
    marked = np.zeros(len(names), dtype=bool)
    marked[[*allowing(layer, names, allow)]] = True
    return marked
