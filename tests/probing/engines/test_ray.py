"""The same numbers from a real Ray cluster of two machines' worth of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import networks
import numpy as np
import pytest
import torch

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import EngineError, ModelError
from pytest_watermark_guard.exploring import survey as survey_module
from pytest_watermark_guard.probing.engines import ray_engine

pytest.importorskip("ray", reason="Ray is an optional extra")

PHOTOS = np.random.default_rng(0).integers(0, 256, (60, 40, 40, 3), dtype=np.uint8)
MARK = wm.Scenario("A", ["A"], length=3, size=12)
ARGUMENTS = {
    "scenarios": (MARK,),
    "preprocess": wm.Preprocessing(size=(40, 40)),
    "precision": "float32",
    "device": "cpu",
    "batch_size": 5,
    "cache": False,
}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two nodes of one core; the second says that it has a GPU."""
    patch = pytest.MonkeyPatch()
    # Workers find this folder's modules as they find a user's.
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        nodes.add_node(**small, num_gpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        torch.set_num_threads(threads)
        patch.undo()


def probe(model, **arguments):
    return wm.probe(model, PHOTOS, **{**ARGUMENTS, **arguments})


def survey(models, **arguments):
    return wm.survey(models, PHOTOS, **{**ARGUMENTS, **arguments})


def saved(found, path):
    found.save(path)
    return path.read_bytes()


def test_progress_counts_every_model(monkeypatch):
    counted = []

    @contextmanager
    def bar(total, shown, *_):
        counted.append(-total)
        yield counted.append

    monkeypatch.setattr(survey_module, "progress_bar", bar)
    survey({"one": networks.Net(1), "two": networks.Net(2), "none": "no:such"}, engine="ray")
    assert counted[0] == -3
    assert sum(counted[1:]) == 3


def test_a_survey_gives_the_same_file(tmp_path):
    models = {
        "one": networks.Net(1),
        "no such": "torchvision:nosuch",
        "refuses": networks.Refuses(tmp_path / "log"),
        "two": networks.Net(2),
        "by spec": "networks:net",
    }
    found = saved(survey(models, engine="ray"), tmp_path / "ray.json")
    asked = (tmp_path / "log").read_text()
    assert found == saved(survey(models), tmp_path / "none.json")
    assert (tmp_path / "log").read_text() == 2 * asked  # not a lost worker: not tried again


@pytest.mark.parametrize("arguments", [{}, {"control": True}, {"stop_at": 0.9}])
def test_a_probe_gives_the_same_report(arguments):
    with_ray = probe("networks:net", engine="ray", **arguments)
    assert with_ray.to_json() == probe("networks:net", **arguments).to_json()


def test_a_probe_raises_what_the_model_raises(tmp_path):
    with pytest.raises(ModelError, match="raised LookupError: no such bucket"):
        probe(networks.Refuses(tmp_path / "log"), engine="ray")


def test_a_worker_that_is_killed_half_way_changes_nothing(tmp_path):
    model = networks.DiesOnce(tmp_path / "survey")
    models = {"one": networks.Net(1), "dies": model, "two": networks.Net(2)}
    found = saved(survey(models, engine="ray"), tmp_path / "ray.json")
    assert (tmp_path / "survey").exists()
    assert found == saved(survey(models), tmp_path / "none.json")
    model = networks.DiesOnce(tmp_path / "probe")
    report = probe(model, engine="ray")
    assert (tmp_path / "probe").exists()
    assert report.to_json() == probe(model).to_json()


def test_a_model_that_always_takes_its_worker_along(monkeypatch):
    monkeypatch.setattr(ray_engine, "LOSSES", 0)
    found = survey({"dies": networks.Dies(), "lives": networks.Net()}, engine="ray")
    assert [*found.reports] == ["lives"]
    assert found.failures["dies"].startswith("its worker was lost 1 times")


def test_a_model_that_cannot_be_sent():
    model = networks.Net()
    model.lock = __import__("threading").Lock()
    found = survey({"locked": model, "lives": networks.Net()}, engine="ray")
    assert [*found.reports] == ["lives"]
    assert "cannot be sent to another process (TypeError" in found.failures["locked"]


DRIVER = """
import sys
import networks, torch
import pytest_watermark_guard as wm
sys.path.append(sys.argv[1])
import test_ray
torch.set_num_threads(1)
test_ray.survey(test_ray.three(sys.argv[2]), engine="ray", cache=True)
"""


def three(folder):
    logs = [Path(folder, name) for name in ("one", "two", "three")]
    gates = [None, None, Path(folder, "gate")]
    return {
        log.name: networks.Logged(seed, log, gate)
        for seed, (log, gate) in enumerate(zip(logs, gates, strict=True))
    }


def test_a_survey_whose_driver_is_killed_goes_on(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", DRIVER, here, str(tmp_path)]
    driver = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address})
    try:
        # What is known of a model's layers, together and of each by itself.
        kept, files = tmp_path / "cache" / "cache" / "layers", 2 * 3
        deadline = time.monotonic() + 600
        notes = tmp_path / "cache" / "cache" / "notes"  # which are the last that is kept
        while not (
            (tmp_path / "three").exists()
            and len([*kept.glob("*.guard")]) == files
            and len([*notes.glob("*.guard")]) == 2
        ):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    passes = {name: (tmp_path / name).read_text() for name in ("one", "two", "three")}
    (tmp_path / "gate").touch()
    models = three(tmp_path)
    found = saved(survey(models, engine="ray", cache=True), tmp_path / "ray.json")
    more = {
        name: (tmp_path / name).read_text().count("pass") - text.count("pass")
        for name, text in passes.items()
    }
    # The first images again, and no more, of those that were done.
    assert max(more["one"], more["two"]) <= 8 < passes["one"].count("pass")
    assert more["three"] > 8
    assert found == saved(survey(models), tmp_path / "none.json")


def test_every_call_has_a_gpu_of_its_own_where_there_are_any():
    found = survey({"a": "networks:visible_gpus", "b": "networks:visible_gpus"}, device="auto")
    assert set(found.failures.values()) != {"sees GPUs 0"}
    found = survey(["networks:visible_gpus"] * 2, device="auto", engine="ray")
    assert len(found.failures) == 2
    assert all("sees GPUs 0" in reason for reason in found.failures.values())


def test_gpus_are_dealt_out_by_ray():
    with pytest.raises(EngineError, match="device is 'auto', 'cpu' or 'cuda', not 'cuda:1'"):
        survey([networks.Net()], device="cuda:1", engine="ray")


def test_gates_of_the_command_line(pytester, monkeypatch):
    texts = []
    for engine in ([], ["--wm-engine=ray"]):
        options = ["--wm-model=networks:net", "--wm-device=cpu", "--wm-precision=float32"]
        options += ["--wm-max-images=40", "--wm-scenarios=latin", "--wm-no-cache"]
        result = pytester.runpytest(*options, "--wm-json=run.json", *engine)
        result.assert_outcomes(passed=2)
        texts.append((pytester.path / "run.json").read_bytes())
    assert texts[0] == texts[1]


def test_several_models_of_the_command_line_are_probed_at_once(pytester, monkeypatch):
    def load(spec):
        return networks.Net(7) if spec == "networks:other" else None

    specs = ["networks:net", "networks:other", "torchvision:nosuch"]
    options = ["-p", "no:randomly", *(f"--wm-model={spec}" for spec in specs)]
    options += ["--wm-device=cpu", "--wm-precision=float32", "--wm-max-images=40"]
    options += ["--wm-scenarios=latin", "--wm-no-cache", "--wm-json=run.json"]
    hook = type("Hook", (), {"pytest_wm_load_model": staticmethod(load)})
    alone = pytester.runpytest(*options, plugins=[hook()])
    expected = (pytester.path / "run.json").read_bytes()
    sent = []

    def spied(engine, models, *arguments, **more):
        sent.extend(models)
        return probed(engine, models, *arguments, **more)

    probed = survey_module.probed_by_engine
    monkeypatch.setattr(survey_module, "probed_by_engine", spied)
    result = pytester.runpytest(*options, "--wm-engine=ray", plugins=[hook()])
    assert sorted(sent) == sorted(specs)
    for one in (alone, result):
        one.assert_outcomes(passed=4, errors=2)
    assert (pytester.path / "run.json").read_bytes() == expected


def test_a_skipped_model_of_the_command_line_skips_no_other(pytester):
    pytester.makeconftest(
        """
        import pytest

        def pytest_wm_load_model(spec):
            if spec == "networks:other":
                pytest.skip("not on this machine")
        """
    )
    options = ["--wm-model=networks:net", "--wm-model=networks:other", "--wm-engine=ray", "-rs"]
    options += ["--wm-device=cpu", "--wm-max-images=40", "--wm-scenarios=latin", "--wm-no-cache"]
    result = pytester.runpytest(*options)
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED *not on this machine"])


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'pytest-watermark-guard\[ray\]'"):
        survey([networks.Net()], engine="ray")
