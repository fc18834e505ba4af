"""A probe's images shared out: the same bits, wherever they are cut."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import networks
import numpy as np
import pytest

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import EngineError, SettingsError
from pytest_watermark_guard.probing.engines import shares

PHOTOS = np.random.default_rng(0).integers(0, 256, (101, 40, 40, 3), dtype=np.uint8)
SCENARIOS = tuple(wm.Scenario(name, [name], length=3, size=12) for name in ("A", "B"))


@dataclass
class Here:
    """Calls one after the other in this process; an item may be lost."""

    workers: int
    lost: int | None = None
    items: tuple = ()

    def map(self, function, common, items, ahead=None, done=None):
        self.items = tuple(items)
        for number, item in enumerate(items):
            if number == self.lost:
                yield EngineError("its worker was lost")
                continue
            yield function(common, pickle.loads(pickle.dumps(item)))


@pytest.fixture
def engine(monkeypatch):
    engine = Here(3)
    monkeypatch.setattr(shares, "open_engine", lambda name, device: engine)
    return engine


def probe(**arguments):
    arguments = {
        "preprocess": wm.Preprocessing(size=(40, 40)),
        "precision": "float32",
        "device": "cpu",
        "batch_size": 5,
        "cache": False,
        **arguments,
    }
    return wm.probe(networks.Net(), arguments.pop("images", PHOTOS), SCENARIOS, **arguments)


def test_many_shares_give_the_same_bytes(engine):
    assert probe(engine="ray").to_json() == probe().to_json()
    assert len(engine.items) > 3
    firsts = [share.first for share in engine.items]
    assert [share.last for share in engine.items] == [*firsts[1:], len(PHOTOS)]


@pytest.mark.parametrize("arguments", [{"control": True}, {"stop_at": 0.9}])
def test_also_with(engine, arguments):
    assert probe(engine="ray", **arguments).to_json() == probe(**arguments).to_json()


def test_goes_on_from_what_is_known(engine, tmp_path, monkeypatch):
    """Some images of all streams, then all of one stream: the rest is as it is without engine."""
    found = []
    for name in (None, "ray"):
        monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / str(name)))
        many = np.concatenate([PHOTOS] * 4)
        stopped = probe(images=many, stop_at=0.99, cache=True, engine=name)
        assert stopped.n_images < len(many)
        other = wm.probe(
            networks.Net(),
            many,
            (*SCENARIOS, "latin"),
            preprocess=wm.Preprocessing(size=(40, 40)),
            precision="float32",
            device="cpu",
            batch_size=5,
            engine=name,
        )
        found.append((stopped.to_json(), other.to_json()))
    assert found[0] == found[1]


def test_auto_is_float32_and_says_so(engine):
    report = probe(engine="ray", precision="auto")
    assert report.precision == "float32"
    assert [note for note in report.notes if note.startswith("precision: float32, and not auto")]
    assert not [note for note in probe(engine="ray").notes if "precision" in note]


def test_a_share_that_is_lost_is_an_error(engine):
    engine.lost = 2
    with pytest.raises(EngineError, match="was lost"):
        probe(engine="ray")


def test_unlike_machines_do_not_share_a_probe(engine, monkeypatch):
    names = iter([("here",), *[("there",)] * 9])
    monkeypatch.setattr(shares, "machine", lambda device: next(names))
    with pytest.raises(EngineError, match="this process computes by here, a worker by there"):
        probe(engine="ray")


def test_other_engines_are_unknown():
    with pytest.raises(SettingsError, match="engine must be one of ray, got 'spark'"):
        probe(engine="spark")
