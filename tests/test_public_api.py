"""What `import semo_sdk` offers, and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import semo_sdk
from semo_sdk import errors

ROOT = Path(__file__).parent.parent
HEAVY = {
    "PIL",
    "cv2",
    "diffusers",
    "imageio_ffmpeg",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "pydantic",
    "safetensors",
    "scipy",
    "tensorrt",
    "torch",
    "tqdm",
    "typer",
    "whisper",
}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running ``code``."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import semo_sdk; semo_sdk.__version__; dir(semo_sdk)") & HEAVY


def test_the_runtime_loads_neither_engines_nor_torch_before_it_needs_them() -> None:
    loaded = loaded_by("import semo_sdk; [getattr(semo_sdk, name) for name in semo_sdk.__all__]")
    assert loaded & HEAVY == {"numpy", "pydantic"}


def test_the_command_line_starts_without_engines() -> None:
    assert not loaded_by("import semo_sdk.cli") & (HEAVY - {"typer", "pydantic"})


def test_the_public_names_are_sorted_and_exist() -> None:
    assert semo_sdk.__all__ == sorted(semo_sdk.__all__)
    assert dir(semo_sdk) == semo_sdk.__all__
    for name in semo_sdk.__all__:
        value = getattr(semo_sdk, name)
        assert name == "__version__" or inspect.getdoc(value), f"{name} has no docstring"


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(semo_sdk.__all__)
    for name in errors.__all__:
        assert getattr(semo_sdk, name) is getattr(errors, name)
        assert issubclass(getattr(errors, name), semo_sdk.SemoError)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Animater'"):
        semo_sdk.Animater  # noqa: B018
    assert not hasattr(semo_sdk, "torch")


def test_the_version_is_the_package_s() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == semo_sdk.__version__


@pytest.mark.parametrize(
    "name", ["Animator", "Bundle", "Chunk", "Clip", "Motion", "Portrait", "Session", "StreamState"]
)
def test_public_classes_are_documented_and_typed(name: str) -> None:
    cls = getattr(semo_sdk, name)
    for attribute, member in vars(cls).items():
        if attribute.startswith("_"):
            continue
        target = member.fget if isinstance(member, property) else getattr(member, "func", member)
        function = getattr(target, "__func__", target)
        if inspect.isfunction(function):
            assert inspect.getdoc(function), f"{name}.{attribute} has no docstring"
            assert "return" in function.__annotations__, f"{name}.{attribute} has no return type"
