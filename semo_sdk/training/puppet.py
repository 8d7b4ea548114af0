"""The puppet: a portrait that takes on any pose and expression by a piecewise-affine warp (DESIGN, section 5).

A frame is made in three steps: the posed mesh with its rings gives *target points*; their Delaunay triangulation,
sampled on a 64 x 64 grid, gives the *field* (where each cell of the frame comes from in the portrait), whose bilinear
enlargement warps the portrait; where the lips are apart the driver's own mouth interior is pasted in.

All points are pixels of the 256 x 256 crop with (0, 0) the corner of the first pixel, so cell (i, j) of the field sits
at ``((j + 0.5) * 4, (i + 0.5) * 4)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.training import puppet_geometry as geometry
from semo_sdk.training.puppet_gaze import place_irises, shift_gaze
from semo_sdk.training.puppet_mouth import OPEN_MOUTH, MouthSource, fill_polygon, mouth_gap, paste_mouth

__all__ = [
    "CELLS",
    "POINTS",
    "Identity",
    "MouthSource",
    "Warp",
    "field_of",
    "make_identity",
    "region_weights",
    "render",
    "square_crop",
    "target_points",
    "triangulate",
    "warp_image",
]

CELLS = 64  # cells of the field on each side
CELL = IMAGE_SIZE // CELLS  # pixels
BORDER_STEPS = 8  # fixed points on each side of the crop
RING_POINTS = geometry.OVAL[::2]  # oval vertices that carry the rings
POINTS = geometry.MESH + 2 * len(RING_POINTS) + 4 * BORDER_STEPS
RING_DEPTH = 0.25  # of the rings behind the oval's mean, in face heights
CLOSED_SOURCE = 0.006  # face heights: portraits with lips further apart have them closed in full resolution first


def square_crop(image: np.ndarray, centre: np.ndarray, side: float, margin: int = 0) -> np.ndarray:
    """A (256, 256, 3) uint8 crop; outside the photo its edge is repeated and blurred.

    Args:
        image: (H, W, 3) uint8.
        centre: (2,) x, y in pixels.
        side: of the crop in the image's pixels.
        margin: pixels of the result to have on each side beyond the 256.
    """
    import cv2

    height, width = image.shape[:2]
    size = IMAGE_SIZE + 2 * margin
    side = side * size / IMAGE_SIZE
    low = centre - side / 2
    reach = np.array([-low[0], -low[1], low[0] + side - width, low[1] + side - height])
    pad = int(np.ceil(max(0.0, reach.max()))) + 2
    if pad > 2:
        wide = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        small = cv2.resize(wide, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        soft = cv2.GaussianBlur(small, (0, 0), max(1.0, side / 100), borderType=cv2.BORDER_REPLICATE)
        soft = cv2.resize(soft, wide.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        inside = np.full((height, width), 255, np.uint8)
        mask = cv2.copyMakeBorder(inside, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
        distance = cv2.distanceTransform(255 - mask, cv2.DIST_L2, 3)
        share = np.clip(distance / (side / 40), 0, 1)[..., None]
        image = (wide * (1 - share) + soft * share).astype(np.uint8)
        low = low + pad
    scale = side / size
    if scale > 1.5:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 * scale)
    shift = low + scale / 2 - 0.5
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE))


@dataclass(frozen=True)
class Identity:
    """A person ready to be animated, in its 256 crop.

    Attributes:
        image: uint8 RGB that is warped (lips closed when the photo's were apart): the crop and ``margin`` around it.
        points: (P, 2) source points in the crop: mesh, inner ring, outer ring, border.
        pose: (6,) own pose in the crop.
        neutral: (468, 3) canonical shape with closed lips.
        rings: (2 * ring, 3) rings in canonical space.
        canonical: (468, 3) mean face that the poses refer to.
        triangles: (n, 3) of the mesh, see :func:`semo_sdk.training.puppet_geometry.face_triangles`.
        margin: pixels of the image on each side beyond the crop, for faces that the crop cuts off.
        irises: (2, 3) see :func:`semo_sdk.training.puppet_gaze.place_irises`; None where the mesh has none.
    """

    image: np.ndarray
    points: np.ndarray
    pose: np.ndarray
    neutral: np.ndarray
    rings: np.ndarray
    canonical: np.ndarray
    triangles: np.ndarray
    margin: int = 0
    irises: np.ndarray | None = None

    def hidden(self, target: np.ndarray) -> np.ndarray:
        """Points that are behind the face in the source or among target points (P, 2): no triangle may use them."""
        sides = (geometry.hidden_vertices(side, self.canonical, self.triangles) for side in (self.points, target))
        return np.union1d(*sides)


def _border(margin: int) -> np.ndarray:
    size = IMAGE_SIZE + 2 * margin
    along = np.arange(BORDER_STEPS) * (size / BORDER_STEPS)
    zero, full = np.zeros(BORDER_STEPS), np.full(BORDER_STEPS, float(size))
    sides = [(along, zero), (full, along), (size - along, full), (zero, size - along)]
    return np.concatenate([np.stack(side, 1) for side in sides]) - margin


def _rings(oval: np.ndarray, margin: int) -> np.ndarray:
    """(2 * ring, 2) points around the head, inside the image: hair above, ears beside, neck below."""
    centre = oval.mean(0)
    out = oval - centre
    up = np.clip(-out[:, 1:] / np.abs(out[:, 1]).max(), -1, 1)
    reach = 1.28 + 0.2 * up  # the head extends further above the face than below
    to_border = np.where(out > 0, IMAGE_SIZE + margin - centre, centre + margin) / np.maximum(np.abs(out), 1e-6)
    limit = np.maximum(to_border.min(1, keepdims=True), 1.05)
    inner = np.minimum(reach, 1 + 0.45 * (limit - 1))
    outer = np.minimum(inner + 0.5, inner + 0.5 * (limit - inner))
    return np.concatenate([centre + out * inner, centre + out * outer])


def make_identity(
    image: np.ndarray,
    mesh: np.ndarray,
    canonical: np.ndarray,
    opening: np.ndarray,
    *,
    neutral: np.ndarray | None = None,
    margin: int = 0,
) -> Identity:
    """Prepares a portrait crop.

    Args:
        image: (256 + 2 * margin, 256 + 2 * margin, 3) uint8 RGB.
        mesh: (478 or 468, 3) its landmarks in pixels of the crop.
        canonical: (468, 3) mean face.
        opening: (468, 3) see :class:`semo_sdk.training.puppet_driver.Driver`.
        neutral: shape at rest when it is known better than from this one image.
        margin: pixels of the image around the crop.
    """
    irises = place_irises(mesh) if len(mesh) >= geometry.MESH + len(geometry.IRIS_PAIRS) else None
    mesh = mesh[: geometry.MESH].astype(np.float64)
    pose = geometry.fit_pose(mesh, canonical)
    own = geometry.frontal(mesh, pose, canonical)
    rings = _rings(mesh[RING_POINTS, :2], margin)
    points = np.concatenate([mesh[:, :2], rings, _border(margin)])
    depth = np.full(len(rings), pose[3] * (own[RING_POINTS, 2].mean() + RING_DEPTH))
    in_canonical = geometry.to_canonical(np.concatenate([rings, depth[:, None]], 1), pose)
    gap = (own[geometry.INNER_LOWER[3:8], 1] - own[geometry.INNER_UPPER[3:8], 1]).mean()
    if neutral is None:
        neutral = geometry.close_lips(own, opening)
        if gap > CLOSED_SOURCE:
            closed = points.copy()
            closed[: geometry.MESH] = geometry.from_canonical(neutral, pose)[:, :2]
            image = warp_image(image, _full_field(closed + margin, points + margin, len(image)))
            points = closed
    triangles = geometry.face_triangles(canonical)
    return Identity(image, points, pose, neutral, in_canonical, canonical, triangles, margin, irises)


def _full_field(target: np.ndarray, source: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 2) field of a whole image without the 64 x 64 grid, for closing lips exactly."""
    warp = triangulate(target, cells=size, size=size)
    return field_of(warp, source, size)


def target_points(identity: Identity, pose: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Where the points of an identity go, (P, 2) pixels.

    Args:
        identity: the person.
        pose: (6,) absolute pose in the crop.
        shape: (468, 3) canonical shape with its expression.
    """
    half = len(RING_POINTS)
    mesh = geometry.from_canonical(shape, pose)[:, :2]
    rings = geometry.from_canonical(identity.rings, pose)[:, :2]
    at_rest = identity.points[geometry.MESH : geometry.MESH + 2 * half]
    rings[half:] = (rings[half:] + at_rest[half:]) / 2
    return np.concatenate([mesh, rings, identity.points[geometry.MESH + 2 * half :]])


@dataclass(frozen=True)
class Warp:
    """A triangulation sampled on a grid: works with any source points.

    Attributes:
        triangles: (n * n, 3) int16 ids of the points around each cell's centre, row by row.
        weights: (n * n, 2) float32 first two barycentric weights; the third is 1 - their sum.
    """

    triangles: np.ndarray
    weights: np.ndarray


def triangulate(
    target: np.ndarray, hidden: np.ndarray | None = None, *, cells: int = CELLS, size: int = IMAGE_SIZE
) -> Warp:
    """Delaunay triangulation of target points (P, 2) but the hidden ones, sampled at the centres of a grid.

    The grid has ``cells`` cells a side and covers ``size`` pixels.
    """
    from scipy.spatial import Delaunay

    used = np.arange(len(target)) if hidden is None else np.delete(np.arange(len(target)), hidden)
    mesh = Delaunay(target[used])
    line = (np.arange(cells) + 0.5) * (size / cells)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    inside = mesh.find_simplex(grid)
    frame = mesh.transform[inside]
    weights = np.einsum("nij,nj->ni", frame[:, :2], grid - frame[:, 2])
    weights[~np.isfinite(weights).all(1)] = 1 / 3
    return Warp(used[mesh.simplices[inside]].astype(np.int16), np.clip(weights, 0, 1).astype(np.float32))


def field_of(warp: Warp, source: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """(cells, cells, 2) float32: where in the source each cell comes from, x and y in pixels."""
    third = 1 - warp.weights.sum(1, keepdims=True)
    weights = np.concatenate([warp.weights, third], 1).astype(np.float32)
    corners = source.astype(np.float32)[warp.triangles]
    return np.asarray((weights[..., None] * corners).sum(1).reshape(cells, cells, 2))


def warp_image(image: np.ndarray, field: np.ndarray, margin: int = 0) -> np.ndarray:
    """Warps a square uint8 image by a field of any resolution, enlarged bilinearly as a displacement.

    What the field covers, the image without its ``margin`` on each side, is what comes back.
    """
    import cv2

    size, cells = len(image) - 2 * margin, len(field)
    line = (np.arange(cells, dtype=np.float32) + np.float32(0.5)) * np.float32(size / cells)
    move = field - np.stack(np.meshgrid(line, line), -1)
    if cells != size:
        move = cv2.resize(move, (size, size), interpolation=cv2.INTER_LINEAR)
    pixel = np.arange(size, dtype=np.float32)
    x = move[..., 0] + pixel[None, :]
    y = move[..., 1] + pixel[:, None]
    return np.asarray(cv2.remap(image, x + margin, y + margin, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def render(
    identity: Identity, target: np.ndarray, source: MouthSource | None = None, gaze: np.ndarray | None = None
) -> tuple[np.ndarray, Warp]:
    """One frame.

    Args:
        identity: the person.
        target: (P, 2) from :func:`target_points`.
        source: the driver's frame for the mouth interior; without it an open mouth shows stretched lips.
        gaze: (2,) how far the irises move, see :mod:`semo_sdk.training.puppet_gaze`; the identity must have some.

    Returns:
        Frame (256, 256, 3) uint8 RGB and the warp that made it.
    """
    warp = triangulate(target, identity.hidden(target))
    stored = Warp(warp.triangles, warp.weights.astype(np.float16).astype(np.float32))
    frame = warp_image(identity.image, field_of(stored, identity.points), identity.margin)
    if gaze is not None and identity.irises is not None:
        shift_gaze(frame, target, identity.irises, gaze)
    if source is not None and mouth_gap(target) > OPEN_MOUTH:
        paste_mouth(frame, target, MouthSource(identity.image, identity.points + identity.margin), source)
    return frame, stored


def region_weights(target: np.ndarray) -> np.ndarray:
    """(64, 64) uint8: 0 background, 1 face, 2 mouth, eyes and brows, 3 between open lips."""
    import cv2

    size = (CELLS, CELLS)
    small = target / CELL
    out = (fill_polygon(small[geometry.OVAL], size) > 0.5).astype(np.uint8)
    regions = [geometry.OUTER_LIPS]
    for eye in (0, 1):
        lids = np.concatenate([geometry.UPPER_LIDS[eye], geometry.LOWER_LIDS[eye], geometry.EYE_CORNERS[eye]])
        regions += [lids, geometry.BROWS[eye]]
    for region in regions:
        hull = cv2.convexHull(small[region].astype(np.float32))[:, 0]
        centre = hull.mean(0)
        length = np.linalg.norm(hull - centre, axis=1, keepdims=True)
        out[fill_polygon(centre + (hull - centre) * (1 + 1.2 / length), size) > 0.3] = 2
    if mouth_gap(target) > OPEN_MOUTH:
        out[fill_polygon(small[geometry.INNER_LIPS], size) > 0.5] = 3
    return out
