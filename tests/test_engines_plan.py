"""What will be built is derived: profiles from the graphs' contracts, everything else from a recipe per GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from semo_sdk.backends import graph_specs
from semo_sdk.backends.tensorrt_api import Flavour, Gpu
from semo_sdk.config import preset
from semo_sdk.engines.plan import profile
from semo_sdk.engines.recipes import choose_recipe, recipes
from semo_sdk.errors import BackendUnavailableError, ConfigError, EngineMismatchError
from tests.conftest import TINY

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")
TRT = Flavour("tensorrt", "TensorRT", object(), "11.4.0")
RTX = Flavour("tensorrt_rtx", "TensorRT-RTX", object(), "1.7.1")


@pytest.mark.parametrize("config", [TINY, preset("semo-base")], ids=["tiny", "base"])
@pytest.mark.parametrize("sessions", [1, 5])
def test_profiles_are_the_axes_of_the_spec_with_the_sessions_as_batch(config: Any, sessions: int) -> None:
    for spec in graph_specs(config).values():
        found = profile(spec, sessions)
        assert list(found) == [t.name for t in spec.inputs]
        for t in spec.inputs:
            for dim, low, common, high in zip(t.shape, *found[t.name], strict=True):
                if dim == "B":
                    assert (low, common, high) == (1, sessions, sessions)
                elif isinstance(dim, str):
                    axis = spec.axes[dim]
                    assert (low, common, high) == (axis.min, axis.opt, axis.max)
                else:
                    assert low == common == high == dim


def test_recipes_are_chosen_by_the_gpu_and_by_what_is_installed() -> None:
    both = {"tensorrt": TRT, "tensorrt_rtx": RTX}
    assert choose_recipe("auto", H100, both).name == "h100"
    assert choose_recipe("auto", replace(H100, name="NVIDIA L40S"), both).name == "l4"
    assert choose_recipe("auto", replace(H100, name="NVIDIA GeForce RTX 4090"), both).name == "tensorrt"
    assert choose_recipe("auto", H100, {"tensorrt_rtx": RTX}).name == "rtx"
    assert choose_recipe("l4", None, {}).name == "l4"
    with pytest.raises(ConfigError, match="no target 'tpu'; choose auto, a100, h100"):
        choose_recipe("tpu", H100, both)
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA GPU.*rtx-portable"):
        choose_recipe("auto", None, both)
    with pytest.raises(BackendUnavailableError, match=r"semo-sdk\[tensorrt\].*semo-sdk\[rtx\]"):
        choose_recipe("auto", H100, {})


def test_a_target_for_another_gpu_or_for_none_here_is_refused() -> None:
    with pytest.raises(EngineMismatchError, match="'l4' is for L4, L40, L40S, this machine has NVIDIA H100"):
        recipes()["l4"].device(H100)
    with pytest.raises(BackendUnavailableError, match=r"'h100'.*no NVIDIA GPU.*rtx-portable"):
        recipes()["h100"].device(None)
    assert recipes()["rtx-portable"].device(None).gpu == ""
    assert str(recipes()["h100"].device(H100)) == "NVIDIA H100 80GB HBM3, compute capability 9.0, driver 580.65.06"
