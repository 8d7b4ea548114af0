"""Fixtures that all tests share: example inputs, a tiny model with random weights, engines of every kind."""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import semo_sdk.export
from semo_sdk.animator import Animator
from semo_sdk.backends import fake_engines
from semo_sdk.backends.tensorrt_api import Flavour, load_flavour
from semo_sdk.config import AudioConfig, DecoderConfig, EncoderConfig, GeneratorConfig, SemoConfig
from semo_sdk.constants import IMAGE_SIZE, SAMPLE_RATE
from semo_sdk.errors import BackendUnavailableError
from semo_sdk.media.image import Portrait, find_portrait, load_image
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference, encode_reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk
from semo_sdk.session import Session

if TYPE_CHECKING:
    import httpx

    from semo_sdk.export import ParityReport
    from semo_sdk.models.semo import SemoModel
    from semo_sdk.training.puppet import Identity
    from semo_sdk.training.puppet_assets import Assets
    from tests.serving_tools import Running

# Two processes that each spread over all cores wait for each other: training tests took four times as long.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

EXAMPLES = Path(__file__).parent.parent / "examples"

Open = Callable[..., Session]
MAY_BE_MISSING = "no NVIDIA GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, but of those that need the exported model one first and the others last.

    The export takes more than a minute, and the other process must not wait for it.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    longest = sorted(files, key=lambda path: -len(files[path]))
    waiting = [path for path in longest if any("exported" in getattr(i, "fixturenames", ()) for i in files[path])]
    order = [*waiting[:1], *(path for path in longest if path not in waiting), *waiting[1:]]
    items[:] = [item for path in order for item in files[path]]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With SEMO_ALL_PACKAGES a package that is missing fails the run: its tests would be skipped without a word."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "SEMO_ALL_PACKAGES" not in os.environ or reporter is None:
        return
    reasons = {str(report.longrepr[-1]) for report in reporter.stats.get("skipped", [])}
    hidden = sorted(reason for reason in reasons if MAY_BE_MISSING not in reason)
    if hidden:
        reporter.write_line(f"skipped, although every package should be here: {'; '.join(hidden)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# semo-tiny's shape (warp prior, one step, DCT), but so small that export and every engine take seconds.
TINY = SemoConfig(
    name="tiny-random",
    vae="patch",
    encoder=EncoderConfig(hidden=64, layers=1, heads=2),
    decoder=DecoderConfig(
        hidden=64,
        layers=1,
        heads=2,
        temporal_window=4,
        prior="warp",
        prior_noise=0.0,
        warp_layers=1,
        refine_channels=16,
        steps=1,
    ),
    generator=GeneratorConfig(hidden=64, layers=1, heads=2, steps=2, guidance=1.0),
    audio=AudioConfig(model="random", width=64, heads=2, layers=1),
)

SMALL_AUDIO = AudioConfig(width=32, heads=2, layers=1)  # of a Whisper encoder that is quick to train with


def random_speech(samples: int, *, seed: int = 0) -> np.ndarray:
    """(samples,) float32 at 16 kHz: noise in bursts, like syllables."""
    generator = np.random.default_rng(seed)
    bursts = np.sin(np.arange(samples) * 2 * np.pi * 4 / SAMPLE_RATE) > 0
    return (generator.uniform(-0.5, 0.5, samples) * bursts).astype(np.float32)


def splits(total: int, *, seed: int, largest: int) -> list[slice]:
    """``range(total)`` in random pieces of 0 to ``largest``."""
    generator = np.random.default_rng(seed)
    pieces, start = [], 0
    while start < total:
        stop = min(start + int(generator.integers(0, largest + 1)), total)
        pieces.append(slice(start, stop))
        start = stop
    return pieces


def assert_same(mine: Iterable[Chunk], theirs: Iterable[Chunk]) -> None:
    """The same frames, sound and motion; where a chunk ends may differ."""
    mine, theirs = list(mine), list(theirs)
    for name in ("frames", "audio", "motion"):
        a, b = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for chunks in (mine, theirs))
        assert a.shape == b.shape and np.array_equal(a, b), name
    assert mine[0].index == theirs[0].index


def spoken(session: Session, pieces: Iterable[np.ndarray], rate: int = SAMPLE_RATE) -> list[Chunk]:
    chunks = [chunk for piece in pieces for chunk in session.push(piece, rate)]
    return chunks + session.flush()


def random_model(config: SemoConfig) -> SemoModel:
    """Random weights, also where training starts from zero: every layer takes part."""
    import torch

    from semo_sdk.models.semo import SemoModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SemoModel(config).eval()
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        if model.decoder.warp is not None:
            # the edges of wild paint would turn a rounding error into whole grey levels
            model.decoder.warp.maps.out.weight.data *= 0.1
    return model


@pytest.fixture(scope="session", autouse=True)
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the key that signs videos is made: not in the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """What the puppet's tests render from; needs cv2."""
    from tests.puppet_tools import make_assets

    return make_assets(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="session")
def identities() -> list[Identity]:
    """Both example photos, ready to be animated as puppets; needs cv2."""
    from tests.puppet_tools import make_identities

    return make_identities()


@pytest.fixture(scope="session")
def tiny_config() -> SemoConfig:
    """Config of the tiny model."""
    return TINY


@pytest.fixture(scope="session")
def tiny_model(tiny_config: SemoConfig) -> SemoModel:
    """The tiny model in torch, with random weights."""
    pytest.importorskip("torch")
    return random_model(tiny_config)


@pytest.fixture(scope="session")
def exported(
    tiny_model: SemoModel, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ParityReport]:
    """That model as a bundle folder, made as the command line makes it from a checkpoint file, and the parity report.

    Torch takes more than a minute for it, so pytest's cache keeps it until something that takes part in it changes.
    Read it, but do not change it.
    """
    pytest.importorskip("onnxscript")
    from filelock import FileLock

    from semo_sdk.export import export_bundle
    from semo_sdk.models.checkpoint import save_checkpoint

    cache = getattr(pytestconfig, "cache", None)  # there is none with -p no:cacheprovider
    bundles = tmp_path_factory.mktemp("bundles") if cache is None else cache.mkdir("bundles")
    folder = bundles / f"{TINY.name}-{export_key()}"
    report = folder.with_suffix(".pickle")
    with FileLock(folder.with_suffix(".lock")):  # of two workers one exports, and the other waits
        if not report.is_file():
            with tempfile.TemporaryDirectory(dir=bundles) as work:
                checkpoint = Path(work) / "model.safetensors"
                save_checkpoint(checkpoint, tiny_model, {"step": "7"})
                about: dict[str, Any] = {"provenance": {"weights": "random"}, "metrics": {"psnr": 12.5}}
                made = export_bundle(checkpoint, folder, name="renamed", licence="CC0-1.0", force=True, **about)
            report.write_bytes(pickle.dumps(made))
        return folder, pickle.loads(report.read_bytes())


def export_key() -> str:
    """Changes with every file and every package that an export depends on."""
    package, export = Path(semo_sdk.__file__).parent, Path(semo_sdk.export.__file__).parent
    files = [package / f"{name}.py" for name in ("bundle", "config", "constants", "files")]
    files += [file for folder in (package / "backends", package / "models", export) for file in folder.glob("*.py")]
    versions = [version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")]
    parts = [TINY.model_dump_json(), inspect.getsource(random_model), *versions]
    parts += [file.read_text(encoding="utf-8") for file in sorted(files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    """TensorRT-RTX itself, which builds without a GPU."""
    try:
        return load_flavour("tensorrt_rtx")
    except BackendUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_bundle(exported: tuple[Path, ParityReport]) -> Path:
    """That bundle's folder."""
    return exported[0]


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for ``SMALL_AUDIO``."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from semo_sdk.models.whisper import WhisperEncoder

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = WhisperEncoder(SMALL_AUDIO).state_dict()
    path = tmp_path_factory.mktemp("whisper") / "encoder.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture
def graphs(tiny_config: SemoConfig) -> Graphs:
    """The tiny model on fake engines."""
    return Graphs(fake_engines(tiny_config), tiny_config)


@pytest.fixture(scope="session")
def face_image() -> np.ndarray:
    """(256, 256, 3) uint8 RGB that stands for a cropped portrait."""
    return np.random.default_rng(1).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


@pytest.fixture
def reference(graphs: Graphs, face_image: np.ndarray) -> Reference:
    """That portrait, encoded by ``graphs``."""
    return encode_reference(graphs, face_image)


@pytest.fixture(scope="session")
def portrait_path() -> Path:
    """A photo of a face of nobody."""
    return EXAMPLES / "portrait.jpg"


@pytest.fixture(scope="session")
def speech_path() -> Path:
    """A short real utterance."""
    return EXAMPLES / "speech.wav"


@pytest.fixture(scope="session")
def portrait(portrait_path: Path) -> Portrait:
    """That photo's face, found and cropped."""
    return find_portrait(load_image(portrait_path))


@pytest.fixture
def animator(portrait: Portrait, graphs: Graphs) -> Animator:
    """That portrait on fake engines."""
    return Animator.from_graphs(portrait, graphs)


@pytest.fixture
def begin(graphs: Graphs, reference: Reference) -> Callable[..., StreamState]:
    def make(latency: str = "balanced", seed: int = 0) -> StreamState:
        return StreamState.start(graphs.config, reference.motion[0], latency=latency, seed=seed)

    return make


@pytest.fixture
def open_session(graphs: Graphs, reference: Reference, begin: Callable[..., StreamState]) -> Open:
    def make(latency: str = "balanced", seed: int = 0) -> Session:
        return Session(graphs, reference, begin(latency, seed))

    return make


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    """Settings of the server ``running``: low ones. A module may have its own."""
    return {"image_pixels": 2_000_000, "audio_seconds": 10, "image_bytes": 3_000_000}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, portrait: Portrait, limits: dict[str, Any]) -> Iterator[Running]:
    """A server."""
    from tests.serving_tools import serving

    with serving(tmp_path_factory.mktemp("serving"), portrait, **limits) as server:
        yield server


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    """Plain HTTP to that server."""
    import httpx

    with httpx.Client(base_url=running.url, timeout=120) as client:
        yield client
