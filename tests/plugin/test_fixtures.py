from __future__ import annotations

import pytest


def test_the_guard_goes_by_the_run_s_settings(project, distribution):
    project.makepyfile(
        """
        import pytest, shop

        def test_probe(wm_guard):
            assert wm_guard.settings.threshold == 0.7
            report = wm_guard.probe(shop.sensitive(), layers="logits")
            assert report.layers == ("logits",)

        def test_check(wm_guard):
            wm_guard.check(shop.sensitive())

        @pytest.mark.wm_settings(threshold=1.0, layers=("logits",), scenarios=("latin",))
        def test_marked(wm_guard):
            assert wm_guard.check(shop.blind()).scenarios == ("latin",)
        """
    )
    result = project.runpytest("--wm-threshold=0.7", *distribution)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*wm_guard.check(shop.sensitive())", "E *(d >= 0.7)."])
    result.stdout.no_fnmatch_line("*plugin.py*")


def test_batches(project):
    project.makepyfile(
        """
        import torch, shop

        def test_batches(wm_batches, wm_device):
            assert len(wm_batches) == 2
            batch = next(iter(wm_batches))
            assert batch.images.shape[1:] == (3, 224, 224)
            assert batch.images.device == wm_device
            assert list(batch.marked) == ["chinese", "latin"]
            for marked in batch.marked.values():
                changed = (marked != batch.images).any(1).flatten(1).sum(1)
                assert (changed > 300).all() and (changed < 6300).all()
            # The whole ink is white: (1 - mean) / std of the red channel.
            white = torch.tensor((1 - 0.485) / 0.229)
            assert torch.isclose(batch.marked["latin"][:, 0].amax(), white)

        def test_twice_the_same(wm_batches):
            one, two = next(iter(wm_batches)), next(iter(wm_batches))
            assert torch.equal(one.marked["chinese"], two.marked["chinese"])

        def test_for_a_model(wm_batches):
            batch = next(iter(wm_batches.for_model(shop.blind(), preprocess="none")))
            assert batch.images.min() >= 0 and batch.images.max() <= 1
        """
    )
    project.runpytest().assert_outcomes(passed=3)


def test_each_worker_takes_its_own_gpu(project, monkeypatch):
    """With two GPUs that this machine may not have: only the choice is looked at."""
    torch = pytest.importorskip("torch")
    from pytest_watermark_guard.models import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device.torch, "empty", lambda *args, **kwargs: None)
    chosen = [str(device.resolve_device("auto", worker)) for worker in range(4)]
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert str(device.resolve_device("cuda:1", 0)) == "cuda:1"
    assert str(device.resolve_device("cpu", 3)) == "cpu"
