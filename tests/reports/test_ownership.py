"""The table of verifications, to the letter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytest_watermark_guard.ownership import CoinDraw, Null, OwnershipReport
from pytest_watermark_guard.reports.ownership import render_ownership

GOLDEN = Path(__file__).parent / "golden"


def report(**fields):
    about = {
        "model": "release\x1b[31m",
        "access": "embeddings",
        "key": "0123456789abcdef" * 4,
        "p_value": 2.0**-10,
        "effect": 0.25,
        "differences": (0.25,) * 10,
        "chosen": 0.875,
        "decoy": 0.625,
        "n_images": 16,
        "images": "16 images of photos/",
        "queries": 321,
        "nulls": (Null("clean", 0.5, 0.001), Null("independent", 0.25, 0.002)),
    }
    return OwnershipReport(**{**about, **fields})


def test_golden(update_golden):
    labels = report(model="api", access="labels", nulls=(), differences=(0.5, -0.125) * 5)
    committed = report(
        model="suspect",
        nulls=(),
        key_pairs=32,
        first_pair=4,
        coin_draw=CoinDraw("NIST beacon, 2027-01-15", "9f", "5A1E0F99", "example.org, 2027-01-10"),
        commitment="fedcba9876543210" * 4,
        as_committed=True,
    )
    later = replace(
        committed,
        access="labels",
        agreement=((0.25,) * 10,) * 10,
        stop_at=0.01,
        as_committed=False,
    )
    for name, terminal in (("wide", {"width": 110}), ("narrow", {"width": 60, "ascii_only": True})):
        text = render_ownership([report(), labels, committed, later], **terminal)
        path = GOLDEN / f"ownership-{name}.txt"
        if update_golden:
            path.write_text(text, "utf-8")
        assert text == path.read_text("utf-8")
