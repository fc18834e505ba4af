"""Placeholder."""

import numpy as np


def decide(area, error, n, threshold):
    d = np.maximum(area, 1 - area)
    if (d - 2 * error >= threshold).any() and n >= 30:
        return "reaches", None
    if (d + 1.7 * error < threshold).all() and n >= 15:
        return "below", None
    return "unclear", 4 * n
