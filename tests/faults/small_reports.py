"""One report of each kind, as small as can be, to write and to read."""

from __future__ import annotations

import numpy as np
import torch

import pytest_watermark_guard as wm
from pytest_watermark_guard.mitigation.sweep_report import SweepReport
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.ownership import OwnershipKey, OwnershipReport
from pytest_watermark_guard.reports.search import Find

SCORES = wm.Scores("logits", "latin", np.array([0.25, 0.9]), np.array([0.1, 0.05]), 9, ("a", "b"))
REPORT = wm.ProbeReport(
    "net",
    "9 photos",
    9,
    1,
    {("logits", "latin"): SCORES},
    {"latin": wm.Impact(0.5, 1, "b", 0.25)},
    controls={("logits", "latin"): SCORES},
    controls_alone={("logits", "latin", "strokes"): SCORES},
    dead_units={"logits": 1},
    versions={"torch": "2"},
    notes=("a note",),
)
ERASURE = wm.FeatureErasure(np.ones((2, 1)), np.ones((1, 2)), np.zeros(2))
HEAD = SweptHead(
    alpha=0.0,
    masked=0,
    accuracy=0.5,
    accuracy_interval=(0.25, 0.75),
    change=0.0,
    change_interval=(-0.5, 0.5),
    scores={"latin": SCORES},
    flips={"latin": 0.5},
    control_flips={"latin": None},
)
SWEEP = SweepReport(
    model="net",
    scenarios=("latin",),
    threshold=0.95,
    margin=0.01,
    seed=1,
    n_train=9,
    n_validation=18,
    classes=("a", "b"),
    penalty=1.0,
    ranking=(1, 0),
    weights="",
    choosing=(HEAD,),
    heads=(HEAD,),
    erased=HEAD,
    erasure=ERASURE,
)
OWNED = OwnershipReport(
    "net", "labels", "ab", 0.5, 0.1, (0.1,), chosen=0.2, decoy=0.1, n_images=9, images="", queries=9
)
SURFACE = wm.SurfaceReport("net", "latin", {"size": (30,)}, {(30,): REPORT})
SEARCH = wm.SearchReport("net", "1 photo", 1, (SCORES.strongest(),), (Find("0", 1.5),))
SURVEY = wm.SurveyReport({"net": REPORT})
KEY = OwnershipKey(
    torch.ones(1, 2, 3, 2, 2, dtype=torch.int8),
    torch.tensor([True]),
    torch.zeros(3, 2, 2, dtype=torch.uint8),
    epsilon=0.03,
    preprocessing=wm.Preprocessing(size=(2, 2), resize=None),
    seed=1,
    encoder="ab",
)
