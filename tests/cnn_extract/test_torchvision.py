import subprocess
import sys
import types

import pytest

from cnn_extract import _torchvision


def test_timm_imports_whether_torchvision_works_or_not():
    """A torchvision whose operators do not fit torch must not keep timm from loading."""
    code = (
        "from cnn_extract._torchvision import import_timm, mend_torchvision\n"
        "import_timm()\n"
        "import torchvision\n"
        "assert mend_torchvision() is False"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_no_torch():
    """Statistics and folds need no torch, and loading it takes seconds."""
    modules = "cli commands decode extract heads images models run stats tables transforms weights"
    code = (
        f"import sys, importlib\n"
        f"for m in {modules.split()!r}: importlib.import_module('cnn_extract.' + m)\n"
        f"assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["torch", "timm", "torchvision"])
def test_missing_package_names_the_extra(monkeypatch, name):
    """A bare ModuleNotFoundError does not say what to install."""
    if name != "torch":
        monkeypatch.setattr(_torchvision, "import_torch", lambda: types.ModuleType("torch"))
    if name == "timm":
        monkeypatch.setattr(_torchvision, "mend_torchvision", lambda: False)

    def refuse(wanted, *args, **kwargs):
        if wanted == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *args, **kwargs)

    real = __import__
    monkeypatch.setattr("builtins.__import__", refuse)
    call = _torchvision.import_torch if name == "torch" else _torchvision.import_timm
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pairstack\[cnn\]'"):
        call()


def test_broken_torch_keeps_its_own_error(monkeypatch):
    """Telling people to install what is installed sends them the wrong way."""

    def refuse(wanted, *args, **kwargs):
        if wanted == "torch":
            raise ModuleNotFoundError("No module named 'sympy'", name="sympy")
        return real(wanted, *args, **kwargs)

    real = __import__
    monkeypatch.setattr("builtins.__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match="sympy"):
        _torchvision.import_torch()
