"""The node pack in examples/comfyui runs in a (small) ComfyUI, and gives what the SDK gives."""

from __future__ import annotations

import copy
import gc
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from semo_sdk import Animator, Bundle, Motion
from semo_sdk.backends import fake_engines
from semo_sdk.bundle import embedded_bundles
from semo_sdk.media.image import paste_back
from semo_sdk.media.video import read_video
from semo_sdk.pipeline.graphs import Graphs
from tests.comfyui_core import RATE, register_core_nodes
from tests.comfyui_tools import ComfyUI, Prompt
from tests.conftest import EXAMPLES, random_speech

PACK = EXAMPLES / "comfyui"
WORKFLOW: Prompt = json.loads((PACK / "workflow_api.json").read_text(encoding="utf-8"))
FRAMES = 20  # of the speech in these tests; the last one is not full


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """(2, samples) float32 at 44.1 kHz."""
    samples = (FRAMES - 1) * RATE // 25 + 100
    return np.stack([random_speech(samples, seed=number) for number in (1, 2)])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models whose engines were opened: fakes, because real ones take long to compile."""
    names: list[str] = []

    def fakes(bundle: Bundle, **settings: Any) -> Any:
        names.append(bundle.name)
        return fake_engines(bundle.config)

    monkeypatch.setattr("semo_sdk.backends.load_engines", fakes)
    return names


@pytest.fixture
def ui(tmp_path: Path, sound: np.ndarray, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> ComfyUI:
    """ComfyUI with the pack, the example portraits and some speech."""
    made = ComfyUI(tmp_path, monkeypatch)
    register_core_nodes(made)
    made.load(PACK)
    for name in ("portrait.jpg", "portrait2.jpg"):
        (tmp_path / "input" / name).write_bytes((EXAMPLES / name).read_bytes())
    with (tmp_path / "input" / "speech.wav").open("wb") as file:
        np.save(file, sound)
    return made


@pytest.fixture
def alone() -> Animator:
    """The same portrait and model without ComfyUI."""
    return Animator(EXAMPLES / "portrait.jpg", backend="fake")


def workflow(**changes: dict[str, Any]) -> Prompt:
    """The example workflow, other inputs for some classes: ``workflow(SemoSpeak={"seed": 1})``."""
    prompt = copy.deepcopy(WORKFLOW)
    for name, inputs in changes.items():
        (node,) = (node for node in prompt.values() if node["class_type"] == name)
        node["inputs"] |= inputs
    return prompt


def uint8(images: Any) -> np.ndarray:
    assert images.dtype == torch.float32 and images.ndim == 4
    return (images * 255).round().to(torch.uint8).numpy()


def test_the_workflow_gives_the_animators_own_frames(ui: ComfyUI, alone: Animator, sound: np.ndarray) -> None:
    run = ui.run(workflow())
    assert run.error is None
    images, audio, motion = run.outputs["5"]
    clip = alone.from_audio(sound.T, sample_rate=RATE)
    assert len(clip) == FRAMES and np.array_equal(uint8(images), clip.frames)
    assert np.array_equal(motion.tokens, clip.motion.tokens) and motion.model == "semo-tiny"
    heard = audio["waveform"][0].numpy()
    assert audio["sample_rate"] == RATE and heard.shape == (2, FRAMES * RATE // 25)
    assert np.array_equal(heard[:, : sound.shape[1]], sound) and not heard[:, sound.shape[1] :].any()
    assert np.array_equal(uint8(run.outputs["4"][1])[0], alone.portrait.crop)
    assert sum(1 for _ in read_video(ui.root / "output" / "saved.mp4")) == FRAMES
    done = [(value, total) for value, total, _ in run.progress]
    assert done == [(16, FRAMES), (FRAMES, FRAMES)]
    kind, picture, _ = run.progress[-1][2]
    assert kind == "JPEG" and np.array_equal(np.asarray(picture), clip.frames[-1])


def test_settings_reach_the_model(ui: ComfyUI, alone: Animator, sound: np.ndarray) -> None:
    style: dict[str, Any] = {"seed": 7, "latency": "low", "expressiveness": 3.0, "head_motion": 0.5, "blink": 0.25}
    run = ui.run(workflow(SemoSpeak=style | {"paste_back": True}))
    clip = alone.from_audio(sound.T, sample_rate=RATE, **style)
    assert np.array_equal(uint8(run.outputs["5"][0]), paste_back(alone.portrait, clip.frames))


def test_only_what_changed_runs_again(ui: ComfyUI, opened: list[str]) -> None:
    assert len(ui.run(workflow()).executed) == len(WORKFLOW)
    assert ui.run(workflow()).executed == []
    assert ui.run(workflow(SemoSpeak={"seed": 1})).executed == ["5", "6", "7"]
    assert ui.run(workflow(LoadImage={"image": "portrait2.jpg"})).executed == ["1", "4", "5", "6", "7"]
    assert opened == ["semo-tiny"]
    two = workflow() | {"8": {"class_type": "SemoLoadModel", "inputs": WORKFLOW["3"]["inputs"] | {"threads": 1}}}
    two["9"] = copy.deepcopy(WORKFLOW["4"])
    two["9"]["inputs"]["model"] = ["8", 0]
    two["10"] = {"class_type": "KeepAny", "inputs": {"anything": ["9", 1]}}
    ui.run(two)
    assert opened == ["semo-tiny"] * 2  # other settings, other engines
    ui.free()
    gc.collect()
    assert ui.run(workflow()).executed[0] == "3" and len(opened) == 3


def test_own_bundles_are_found_and_opened_anew_when_they_change(ui: ComfyUI, opened: list[str]) -> None:
    own = ui.root / "models" / "semo" / "mine"
    own.mkdir(parents=True)
    for file in embedded_bundles()["semo-tiny"].iterdir():
        (own / file.name).symlink_to(file)
    prompt = workflow(SemoLoadModel={"bundle": "mine"})
    assert ui.run(prompt).error is None and opened == ["semo-tiny"]
    assert ui.run(prompt).executed == []
    assert ui.problems(workflow(SemoLoadModel={"bundle": "../mine"})) == [("3", "bundle", "value_not_in_list")]
    manifest = json.loads((own / "manifest.json").read_text(encoding="utf-8"))
    (own / "manifest.json").unlink()
    manifest["files"].pop("weights.safetensors")
    (own / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    error = ui.run(prompt).error
    assert error is not None and error["exception_type"] == "semo_sdk.errors.BundleError"
    assert "weights.safetensors" in error["exception_message"]


def test_cancelling_ends_the_run_soon(ui: ComfyUI) -> None:
    ui.cancel_at = 16
    run = ui.run(workflow())
    assert run.error == {"node_id": "5"} and sorted(run.executed) == ["1", "2", "3", "4"]
    ui.cancel_at = None
    assert ui.run(workflow()).executed == ["5", "6", "7"]


def test_errors_are_the_sdks(ui: ComfyUI) -> None:
    cases = {
        "blank.png": ("NoFaceError", "no face was found"),
        "two.npy": ("ImageError", "2 images"),
    }
    for name, (kind, message) in cases.items():
        error = ui.run(workflow(LoadImage={"image": name})).error
        assert error is not None and error["exception_type"] == f"semo_sdk.errors.{kind}"
        assert message in error["exception_message"] and error["node_id"] == "4"
    for name, message in {"batch": "2 recordings", "nan": "NaN", "empty": "no samples"}.items():
        error = ui.run(workflow(LoadAudio={"audio": name})).error
        assert error is not None and error["exception_type"] == "semo_sdk.errors.AudioError"
        assert message in error["exception_message"] and error["node_id"] == "5"


def reenacted(fps: float, **more: Any) -> Prompt:
    return {
        **{number: WORKFLOW[number] for number in ("1", "3", "4")},
        "20": {"class_type": "Driving", "inputs": {"fps": fps}},
        "21": {
            "class_type": "SemoReenact",
            "inputs": {
                "portrait": ["4", 0],
                "video": ["20", 0],
                "fps": fps,
                "relative": True,
                "face_index": -1,
                "paste_back": False,
            }
            | more,
        },
        "22": {"class_type": "KeepAny", "inputs": {"anything": ["21", 0]}},
        "23": {"class_type": "SemoSaveMotion", "inputs": {"motion": ["21", 1], "filename_prefix": "semo/nod"}},
    }


@pytest.mark.parametrize("fps", [50.0, 12.5])
def test_reenact_whatever_the_rate(ui: ComfyUI, alone: Animator, fps: float) -> None:
    run = ui.run(reenacted(fps))
    assert run.error is None
    driving = uint8(run.outputs["20"][0])
    shown = {50.0: driving[1::2], 12.5: np.repeat(driving, 2, axis=0)}[fps]
    clip = alone.reenact(iter(shown))
    images, motion = run.outputs["21"]
    assert len(images) == len(shown) and np.array_equal(uint8(images), clip.frames)
    assert np.array_equal(motion.tokens, clip.motion.tokens)
    assert run.progress[-1][:2] == (2 * len(shown), 2 * len(shown))


def test_motion_is_kept_and_drawn_on_another_portrait(ui: ComfyUI, alone: Animator) -> None:
    saved = ui.run(reenacted(25.0, relative=False)).outputs["23"][0]
    assert Path(saved) == ui.root / "output" / "semo" / "nod_00001_.npz"
    assert ui.run(reenacted(25.0)).outputs["23"][0].endswith("nod_00002_.npz")
    prompt = {number: WORKFLOW[number] for number in ("1", "3", "4")} | {
        "30": {"class_type": "SemoLoadMotion", "inputs": {"file": "semo/nod_00001_.npz [output]"}},
        "31": {
            "class_type": "SemoRenderMotion",
            "inputs": {"portrait": ["4", 0], "motion": ["30", 0], "retarget": True, "paste_back": False},
        },
        "32": {"class_type": "KeepAny", "inputs": {"anything": ["31", 0]}},
    }
    prompt["1"] = {"class_type": "LoadImage", "inputs": {"image": "portrait2.jpg"}}
    run = ui.run(prompt)
    other = alone.with_portrait(EXAMPLES / "portrait2.jpg")
    motion = Motion.load(saved)
    expected = other.render_motion(motion.retarget(other.reference.motion[0]))
    assert np.array_equal(uint8(run.outputs["31"][0]), expected.frames)
    prompt["31"]["inputs"]["retarget"] = False
    assert np.array_equal(uint8(ui.run(prompt).outputs["31"][0]), other.render_motion(motion).frames)
    motion[:3].save(saved)  # the file changed: what depends on it runs again
    assert len(ui.run(prompt).outputs["31"][0]) == 3
    Motion(motion.tokens, "another").save(ui.root / "input" / "foreign.npz")
    prompt["30"]["inputs"]["file"] = "foreign.npz"
    error = ui.run(prompt).error
    assert error is not None and error["exception_type"] == "semo_sdk.errors.MotionError"
    prompt["30"]["inputs"]["file"] = "../secret.npz"
    assert ui.problems(prompt) == [("30", "file", "value_not_in_list")]


def test_the_pack_says_what_it_is(ui: ComfyUI) -> None:
    own = [name for name in ui.nodes if name.startswith("Semo")]
    assert len(own) == 7
    for name in own:
        schema = ui.schema(name)
        assert schema.category == "SeMo" and schema.description.endswith(".")
    project = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    assert (PACK / "requirements.txt").read_text(encoding="utf-8").split() == project["project"]["dependencies"]
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    for name in own:
        shown = str(ui.schema(name).display_name)
        assert shown in readme or shown in ("Save SeMo Motion", "Load SeMo Motion"), shown


@pytest.mark.slow
def test_with_the_model_that_ships(
    tmp_path: Path, sound: np.ndarray, monkeypatch: pytest.MonkeyPatch, portrait_path: Path
) -> None:
    ui = ComfyUI(tmp_path, monkeypatch)
    register_core_nodes(ui)
    ui.load(PACK)
    (tmp_path / "input" / "portrait.jpg").write_bytes(portrait_path.read_bytes())
    with (tmp_path / "input" / "speech.wav").open("wb") as file:
        np.save(file, sound)
    run = ui.run(workflow())
    graphs = run.outputs["3"][0]
    assert isinstance(graphs, Graphs)
    with Animator(portrait_path) as alone:
        assert np.array_equal(uint8(run.outputs["5"][0]), alone.from_audio(sound.T, sample_rate=RATE).frames)
