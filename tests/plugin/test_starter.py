"""``python -m pytest_watermark_guard init``, in repositories of several kinds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import features

from pytest_watermark_guard.__main__ import main

TEST = "tests/test_watermark_guard.py"
WORKFLOW = ".github/workflows/watermark-guard.yml"


@pytest.fixture
def repository(tmp_path):
    """Make a repository of files, by their texts."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        return tmp_path

    return make


def init(folder, capsys):
    assert main(["init", str(folder)]) == 0
    return capsys.readouterr().out


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("files", "kind", "loading"),
    [
        (
            {"net.py": "import timm\nnet = timm.create_model('resnet50d', pretrained=True)"},
            "timm (timm in net.py)",
            ["import timm\n", 'timm.create_model("resnet50d", pretrained=True)'],
        ),
        (
            {"requirements.txt": "# no torch\ntransformers>=4\n"},
            "transformers (transformers in requirements.txt)",
            ["from transformers import", 'from_pretrained("microsoft/resnet-18")'],
        ),
        (
            {
                "src/shop/net.py": "import lightning as L\nimport timm\n\n"
                "class Carton(L.LightningModule):\n    pass\n"
            },
            "lightning (lightning in src/shop/net.py)",
            ["from shop.net import Carton", 'Carton.load_from_checkpoint("last.ckpt"'],
        ),
        (
            {"pyproject.toml": '[project]\ndependencies = ["numpy", "pytorch-lightning>=2"]\n'},
            "lightning (pytorch_lightning in pyproject.toml)",
            ["from my_package.training import Classifier"],
        ),
        (
            {"net.py": "from torch import nn"},
            "torch (torch in net.py)",
            ["import torchvision\n"],
        ),
        ({}, "torch, as nothing says otherwise", ["import torchvision\n"]),
        (
            {".venv/timm.py": "import timm", "broken.py": "import timm timm ="},
            "torch, as nothing says otherwise",
            [],
        ),
    ],
)
def test_the_kind_of_repository(repository, capsys, files, kind, loading):
    folder = repository(files)
    assert f"Kind of repository: {kind}." in init(folder, capsys)
    text = (folder / TEST).read_text("utf-8")
    compile(text, TEST, "exec")
    for words in loading:
        assert words in text


def test_an_empty_repository_gets_everything(repository, capsys):
    folder = repository({})
    told = init(folder, capsys)
    assert written(folder) == {TEST, WORKFLOW, "pytest.ini"}
    for name in written(folder):
        assert f"wrote {name}\n" in told
    assert f"python -m pytest {TEST} --wm-html=watermarks.html" in told
    assert "pip install torch pytest-watermark-guard" in (folder / WORKFLOW).read_text("utf-8")


def test_a_second_run_changes_nothing(repository, capsys):
    folder = repository({})
    init(folder, capsys)
    (folder / TEST).write_text("# mine")
    before = {name: (folder / name).read_bytes() for name in written(folder)}
    told = init(folder, capsys)
    assert {name: (folder / name).read_bytes() for name in written(folder)} == before
    assert f"{TEST} is there and was left as it is." in told
    assert "pytest.ini is there and was left as it is: add below [pytest]" in told
    assert "wrote" not in told
    assert "torch, as nothing says otherwise" in told  # the test that it wrote tells nothing


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "pyproject.toml",
            "[project]\n",
            "pyproject.toml is there and was left as it is: add below [tool.pytest.ini_options]\n"
            '    wm_threshold = "0.95"\n',
        ),
        ("pyproject.toml", "[tool.pytest]\n", "below [tool.pytest]\n    wm_threshold = 0.95\n"),
        ("pytest.ini", "", "add below [pytest]\n    wm_threshold = 0.95\n"),
        ("tox.ini", "[pytest]\n", "tox.ini is there and was left as it is: add below [pytest]"),
        ("setup.cfg", "[tool:pytest]\n", "add below [tool:pytest]"),
    ],
)
def test_settings_have_a_place_already(repository, capsys, name, text, told):
    folder = repository({name: text})
    assert told in init(folder, capsys)
    file = folder / name
    assert file.read_text() == text
    assert (folder / "pytest.ini").exists() == (file.name == "pytest.ini")


@pytest.mark.parametrize("own", [{"tox.ini": "[pytest]\n"}, {"pytest.toml": ""}])
def test_settings_go_where_pytest_reads_them(repository, capsys, own):
    """A table in pyproject.toml would have pytest ignore the other file."""
    (name,) = own
    told = init(repository({"pyproject.toml": "[project]\n", **own}), capsys)
    assert f"{name} is there and was left as it is: add below [pytest]" in told


def test_a_link_to_nothing_is_no_trouble(repository, capsys):
    folder = repository({"net.py": "import timm"})
    (folder / "a.py").symlink_to("gone.py")
    assert "Kind of repository: timm" in init(folder, capsys)


def test_a_tox_ini_that_is_not_pytest_s(repository, capsys):
    folder = repository({"tox.ini": "[tox]\n"})
    assert "wrote pytest.ini" in init(folder, capsys)


def test_test_folder_requirements_and_gitlab(repository, capsys):
    folder = repository({"test/test_it.py": "", "requirements.txt": "torch\n"})
    (folder / ".gitlab-ci.yml").touch()
    told = init(folder, capsys)
    assert "wrote test/test_watermark_guard.py" in told
    assert "GitLab CI" in told
    workflow = (folder / WORKFLOW).read_text("utf-8")
    assert "pip install -r requirements.txt pytest-watermark-guard" in workflow
    assert "python -m pytest test/test_watermark_guard.py" in workflow


def test_no_such_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["init", str(tmp_path / "nowhere")])
    assert end.value.code == 2
    assert "nowhere' is not a folder; name the repository's" in capsys.readouterr().err


def test_a_file_in_the_way_is_told(repository, capsys):
    folder = repository({"tests": "a file, not a folder"})
    with pytest.raises(SystemExit) as end:
        main(["init", str(folder)])
    assert end.value.code == 1
    assert "init: cannot write" in capsys.readouterr().err


def test_without_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "pytest_watermark_guard"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "init" in done.stderr


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm")
def test_what_was_written_runs(project, capsys):
    project.makepyfile(requirements="")
    (project.path / "tox.ini").unlink()
    init(project.path, capsys)
    test = project.path / TEST
    text = test.read_text("utf-8")
    test.write_text(text.replace('resnet18(weights="IMAGENET1K_V1")', "squeezenet1_1()"))
    settings = "wm_max_images = 4\nwm_inconclusive = pass\n"
    with (project.path / "pytest.ini").open("a") as file:
        file.write(settings)
    project.runpytest(TEST).assert_outcomes(passed=1, warnings=3)
