"""The map of a face that landmarks draw: right at the landmarks, zero off the face, moving with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from semo_sdk.config import preset  # noqa: E402
from semo_sdk.media.image import Portrait  # noqa: E402
from semo_sdk.models.face_places import PLACES, WAVES, face_places  # noqa: E402
from semo_sdk.models.semo import SemoModel  # noqa: E402

SIZE = 64
CELL = 256 / SIZE


@pytest.fixture(scope="module")
def mesh(portrait: Portrait) -> torch.Tensor:
    return torch.from_numpy(portrait.mesh.copy())[None]


@pytest.fixture(scope="module")
def canonical(mesh: torch.Tensor) -> torch.Tensor:
    """This very face, centred and one unit high: the place of each pixel is known."""
    face = mesh[0, :468]
    return (face - face.mean(0)) / (face[:, 1].max() - face[:, 1].min())


def place(channels: torch.Tensor) -> torch.Tensor:
    """x and y on the face, from the widest wave (..., 2)."""
    count = 2 * len(WAVES)
    return torch.atan2(channels[..., 1:3], channels[..., 1 + count : 3 + count]) / (2 * np.pi * WAVES[0])


def test_each_cell_of_the_face_knows_its_place(mesh: torch.Tensor, canonical: torch.Tensor) -> None:
    channels = face_places(mesh, canonical, SIZE)[0].movedim(0, -1)
    assert channels.shape == (SIZE, SIZE, PLACES) and channels.abs().max() <= 1
    points = mesh[0, :468, :2]
    cells = ((torch.stack(torch.meshgrid([torch.arange(SIZE)] * 2, indexing="xy"), -1) + 0.5) * CELL).reshape(-1, 2)
    height = points[:, 1].max() - points[:, 1].min()
    inside = (torch.cdist(cells, points) < 3).any(1).reshape(SIZE, SIZE)
    truth = ((cells - points.mean(0)) / height).reshape(SIZE, SIZE, 2)
    error = (place(channels) - truth)[inside].norm(dim=-1) * height
    assert inside.sum() > 300 and error.mean() < 2 and error.max() < 8  # pixels
    far = (torch.cdist(cells, points).amin(1) > 50).reshape(SIZE, SIZE)
    assert far.sum() > 300 and channels[far].abs().max() < 1e-3


def test_the_map_moves_with_the_face(mesh: torch.Tensor, canonical: torch.Tensor) -> None:
    moved = mesh + torch.tensor([3 * CELL, -2 * CELL, 0.0])
    before, after = (face_places(points, canonical, SIZE)[0] for points in (mesh, moved))
    torch.testing.assert_close(after[:, 8:50, 11:55], before[:, 10:52, 8:52], atol=1e-3, rtol=0)


def test_half_precision_around_it_does_not_reach_it(mesh: torch.Tensor, canonical: torch.Tensor) -> None:
    plain = face_places(mesh, canonical, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(face_places(mesh, canonical, SIZE), plain)


@pytest.mark.parametrize("guided", [True, False])
def test_only_a_guided_head_heeds_it(mesh: torch.Tensor, guided: bool) -> None:
    torch.manual_seed(0)
    config = preset("semo-tiny")
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"warp_guided": guided})})
    model = SemoModel(config).eval()
    assert model.decoder.warp is not None
    torch.nn.init.normal_(model.decoder.warp.maps.out.weight)
    latents = torch.randn(1, config.latent_channels, config.latent_size, config.latent_size)
    features = torch.randn(1, config.grid**2, config.encoder.hidden)
    with torch.no_grad():
        (seen, maps), (unseen, others) = (model.appearance(latents, features, p) for p in (mesh, None))
    assert maps is not None and others is not None
    assert torch.equal(seen, unseen) is not guided
    lids = 1  # answers to landmarks either way
    assert torch.equal(maps[:, 2:], others[:, 2:]) is not guided
    assert not torch.equal(maps[:, lids], others[:, lids])


@pytest.mark.slow
def test_the_reference_graph_of_a_guided_model_is_exported(portrait: Portrait, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from semo_sdk.backends.base import graph_specs
    from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
    from semo_sdk.backends.openvino import OpenVinoEngine
    from semo_sdk.export.graph import export_graph
    from semo_sdk.export.precision import check_types, protect_float32
    from semo_sdk.models.graphs import graph_modules
    from semo_sdk.training.reader import load_face_mesh

    torch.manual_seed(0)
    model = SemoModel(preset("semo-tiny")).eval().requires_grad_(False)
    assert model.reader is not None and model.decoder.warp is not None
    load_face_mesh(model.reader.mesh)
    torch.nn.init.normal_(model.decoder.warp.maps.out.weight)
    spec = graph_specs(model.config)["reference"]
    image = np.stack([portrait.crop, portrait.crop[:, ::-1]])
    expected = graph_modules(model)["reference"](torch.from_numpy(image.copy()))
    graph = export_graph(graph_modules(model.half())["reference"], spec)
    protect_float32(graph)
    check_types(graph, spec.name)
    path = tmp_path / "reference.onnx"
    onnx.save(graph, path)
    for engine in (OnnxRuntimeEngine(spec, path, threads=1), OpenVinoEngine(spec, path)):
        found = engine({"image": image})
        for tensor, truth in zip(spec.outputs, expected, strict=True):
            error = np.abs(found[tensor.name].astype(np.float64) - truth.numpy()).mean()
            assert error < 5e-3 * float(truth.double().square().mean().sqrt()), tensor.name
