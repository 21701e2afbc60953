"""The packages as they are found: what an import costs, other packages called kernels, the wheel, a bare checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.tiers import in_ci
from tests.training.conftest import write_text

ROOT = Path(__file__).resolve().parents[1]
SITE = sysconfig.get_path("purelib")
SMALL = ("experiment=tiny", "data=text", "data.length=32", "model.width=32", "model.heads=2", "trainer.accelerator=cpu")
STUB = """
class _Anything:
    def __init__(self, *args, **kwargs): pass
    def __call__(self, *args, **kwargs): return args[0] if args else self
    def __getattr__(self, name): return _Anything()
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (_Anything,), {})
"""
USES = """
import sys
sys.path[:] = {path!r}
import zoo, zoo_kernels, torch, kernels
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_kernels_available
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
print(*LlamaForCausalLM(config)(torch.zeros(1, 3, dtype=torch.long)).logits.shape)
print(is_kernels_available(), kernels.__file__, zoo_kernels.__file__, zoo.mixers.names()[0])
"""
PROGRAM = """
import runpy, sys
sys.path[:] = {path!r}
sys.argv = [{program!r}, "--help"]
runpy.run_path({program!r}, run_name="__main__")
"""


def run_fresh(code, environment=None):
    """Output of ``code`` in a fresh interpreter with only the folders of the repository added to its path."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", [*in_ci("zoo_kernels"), "zoo.mixers"])
def test_import_needs_only_torch_and_asks_no_device(package):
    """``zoo.mixers`` runs ``zoo/__init__.py`` too, so that the promise holds for ``import zoo``."""
    heavy = ("lightning", "pytorch_lightning", "hydra", "omegaconf", "datasets", "wandb", "transformers", "triton")
    found = run_fresh(f"""
import torch
torch.cuda.is_available = torch.cuda.device_count = torch._C._cuda_getDeviceCount = lambda: 1 / 0
before = set(sys.modules)
import {package}
print(*sorted(set(sys.modules) - before))
print(torch.cuda.is_initialized())
""").splitlines()
    assert not [m for m in found[0].split() if m.split(".")[0] in heavy]
    assert found[1] == "False"


def write_stub(folder):
    """A stand-in for Hugging Face's package ``kernels`` with its metadata, of a version that transformers takes."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION as version

    for name, text in {
        "kernels/__init__.py": STUB,
        f"kernels-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n",
        f"kernels-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"kernels-{version}.dist-info/RECORD": "",
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return version


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_hugging_faces_kernels_and_ours_do_not_meet(tmp_path, first):
    write_stub(tmp_path)
    ours = [str(ROOT), str(ROOT / "kernels")]
    rest = [entry for entry in sys.path if entry and entry not in ours]
    path = [str(tmp_path), *ours, *rest] if first else [*ours, *rest, str(tmp_path)]
    shape, found = run_fresh(USES.format(path=path)).splitlines()
    assert shape == "1 3 32"
    assert found.split()[:3] == [
        "True", str(tmp_path / "kernels" / "__init__.py"), str(ROOT / "kernels" / "zoo_kernels" / "__init__.py"),
    ]  # fmt: skip
    for program in ("train.py", "eval.py"):
        assert "seed" in run_fresh(PROGRAM.format(path=path, program=str(ROOT / program)))


def bare_python(folder, packages):
    """An interpreter of its own, which sees what is installed here but not this project, or nothing at all."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    if packages:
        (site / "others.pth").write_text(SITE)  # a path alone: the .pth files there, ours among them, are not read
    return folder / "bin" / "python"


@pytest.mark.parametrize(("packages", "missing"), [(False, "omegaconf"), *in_ci((True, "zoo_kernels"))])
def test_a_checkout_that_is_not_installed_says_how_to(tmp_path, packages, missing):
    python = bare_python(tmp_path / "venv", packages)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, ROOT / "train.py", "attention=lightning", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {missing} is missing: install")
    assert "pip install -c constraints.txt -e ." in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what git tracks."""
    made = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            target = made / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", made, made / "source"]
    subprocess.run([sys.executable, *build], check=True, timeout=300)
    (file,) = made.glob("attention_zoo-*.whl")
    return file


@pytest.mark.slow  # a minute: eight programs in an environment of its own
def test_the_wheel_alone_does_all_that_a_checkout_does(wheel, tmp_path):
    python = bare_python(tmp_path / "venv", packages=True)
    stub = tmp_path / "stub"
    version = write_stub(stub)
    packed = tmp_path / f"kernels-{version}-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in filter(Path.is_file, stub.rglob("*")):
            archive.write(file, file.relative_to(stub))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    again = "--force-reinstall"
    for package in (["file:" + str(packed)], [wheel], [again, "file:" + str(packed)]):  # before ours, and after
        subprocess.run([*install, *package], check=True, timeout=300)
    here = tmp_path / "elsewhere"
    write_text(here / "text")
    cache, home = f"data.cache_dir={here / 'cache'}", {"HOME": str(tmp_path), "ZOO_CACHE": str(tmp_path / "cache")}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | home

    def call(*arguments):
        command = [python.parent / "attention-zoo", *arguments]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    assert "train" in call("--help") and "mixers" in call("train", "--help")
    data = ("data.path=text", cache)
    call("train", "attention=softmax", *SMALL, *data, "trainer.max_steps=2", "hydra.run.dir=run")
    assert call("eval", "run=run", "task=perplexity", "device=cpu").count("perplexity")
    assert call("generate", "run=run", "prompt=a", "max_new_tokens=2", "device=cpu").startswith("a")
    assert "written: " in call("convert", "run=run", "to=mqa", "out=converted", "device=cpu")
    assert "decode" in call("plan", "attention=lightning", "out=")
    sweep = ("sweep=kv_heads", "mixers.gqa.kv_heads=1,2", "trainer.max_steps=1", "sweep.tasks=[perplexity]", "seed=0")
    call("train", "-m", *SMALL, *data, *sweep, "hydra.sweep.dir=sweep")
    assert "report.html" in call("report", "sweep") and (here / "sweep" / "report" / "report.md").is_file()
    where = subprocess.run(
        [python, "-c", "import zoo, zoo_kernels; print(zoo.__file__, zoo_kernels.__file__)"],
        cwd=here, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(name.startswith(str(tmp_path / "venv")) for name in where.stdout.split())
