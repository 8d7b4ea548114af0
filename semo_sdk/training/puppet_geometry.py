"""Shape arithmetic of the puppet: poses, the canonical face, lips and lids (DESIGN, section 5). numpy only.

Spaces: *image* is pixels, x right, y down, z away from the camera. *Canonical* is a frontal face centred on the
origin whose height (forehead 10 to chin 152) is 1. A pose maps canonical to image by weak perspective:
``image = scale * R @ canonical + (tx, ty, 0)`` with ``R = Rz(roll) Ry(yaw) Rx(pitch)``, stored as a row
``(yaw, pitch, roll, scale, tx, ty)``: radians, pixels per face height, pixels.
"""

from __future__ import annotations

import numpy as np

from semo_sdk import constants

__all__ = [
    "MESH",
    "STABLE",
    "brow_moves",
    "canonical_face",
    "close_lips",
    "fit_pose",
    "from_canonical",
    "lid_closure",
    "rotation",
    "to_canonical",
    "transfer",
]

MESH = 468  # vertices of the mesh without the irises
# Where the points from 468 on lie in a mirror image. For each eye: the iris's centre, then right, top, left and bottom.
IRIS_PAIRS = np.array([473, 476, 475, 474, 477, 468, 471, 470, 469, 472])
TOP, CHIN = 10, 152
# Points that speech and blinks do not move: forehead, temples, bridge of the nose, eye corners.
STABLE = np.array(
    [10, 109, 338, 67, 297, 103, 332, 54, 284, 21, 251, 162, 389, 127, 356, 151, 9, 8, 168, 6, 197, 195, 5, 4]
    + [33, 133, 362, 263, 108, 337, 69, 299, 104, 333, 68, 298, 71, 301, 139, 368, 34, 264, 143, 372]
)
UPPER_LIPS, LOWER_LIPS = np.array(constants.UPPER_LIPS), np.array(constants.LOWER_LIPS)
LIPS = np.unique(np.concatenate([UPPER_LIPS.ravel(), LOWER_LIPS.ravel()]))
INNER_UPPER, INNER_LOWER = UPPER_LIPS[3], LOWER_LIPS[3]
INNER_LIPS = np.concatenate([INNER_UPPER, INNER_LOWER[-2:0:-1]])  # closed polygon
OUTER_LIPS = np.concatenate([UPPER_LIPS[0], LOWER_LIPS[0][-2:0:-1]])
# (2 eyes, 7 columns): upper lid, lower lid, crease above the upper lid.
# without the corners, which no lid moves
UPPER_LIDS, LOWER_LIDS, CREASES = (
    np.array(lines)[:, 1:-1] for lines in (constants.UPPER_LIDS, constants.LOWER_LIDS, constants.EYE_CREASES)
)
EYE_CORNERS = np.array([[33, 133], [263, 362]])
BROWS = np.array([[70, 63, 105, 66, 107, 46, 53, 52, 65, 55], [300, 293, 334, 296, 336, 276, 283, 282, 295, 285]])
OVAL = np.array(
    [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
    + [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
)
# Of the columns of a brow, from the temple to the nose, in face heights: up when raised; down, inwards when frowning.
BROW_RAISE = np.array([0.024, 0.032, 0.036, 0.036, 0.034])
BROW_FROWN = np.array([[0.0, 0.002, 0.008, 0.014, 0.018], [0.004, 0.008, 0.012, 0.016, 0.02]])
LID_TRAVEL, CREASE_TRAVEL = 0.94, 0.4  # of the eye's opening, at a full blink
FULL_CLOSURE = 0.75  # loss of eye opening that counts as closed: the mesh never reports quite 1


def rotation(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """(..., 3, 3) ``Rz(roll) Ry(yaw) Rx(pitch)`` of angles in radians."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    rows = [
        [cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp],
        [sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp],
        [-sy, cy * sp, cy * cp],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least-squares R (..., 3, 3), scale (...), shift (..., 3) with target = scale R source + shift (Umeyama)."""
    source_mean, target_mean = source.mean(-2, keepdims=True), target.mean(-2, keepdims=True)
    a, b = source - source_mean, target - target_mean
    u, s, vt = np.linalg.svd(np.swapaxes(b, -1, -2) @ a)
    sign = np.ones_like(s)
    sign[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    turn = (u * sign[..., None, :]) @ vt
    scale = (s * sign).sum(-1) / np.square(a).sum((-1, -2))
    shift = target_mean[..., 0, :] - scale[..., None] * (turn @ source_mean[..., 0, :, None])[..., 0]
    return turn, scale, shift


def fit_pose(points: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Poses (..., 6) of meshes (..., n >= 468, 3) in the image, from the stable points only."""
    template = np.broadcast_to(canonical[STABLE], (*points.shape[:-2], len(STABLE), 3))
    turn, scale, shift = _similarity(template, points[..., STABLE, :].astype(np.float64))
    yaw = np.arcsin(np.clip(-turn[..., 2, 0], -1, 1))
    pitch = np.arctan2(turn[..., 2, 1], turn[..., 2, 2])
    roll = np.arctan2(turn[..., 1, 0], turn[..., 0, 0])
    return np.stack([yaw, pitch, roll, scale, shift[..., 0], shift[..., 1]], -1)


def from_canonical(shape: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Canonical shapes (..., n, 3) seen in poses (..., 6): (..., n, 3) in the image."""
    turn = rotation(pose[..., 0], pose[..., 1], pose[..., 2]) * pose[..., 3, None, None]
    out = shape @ np.swapaxes(turn, -1, -2)
    out[..., :2] += pose[..., None, 4:6]
    return np.asarray(out)


def to_canonical(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Inverse of :func:`from_canonical`; the depth is centred on the stable points' by the caller's choice of z."""
    turn = rotation(pose[..., 0], pose[..., 1], pose[..., 2]) / pose[..., 3, None, None]
    centred = points.astype(np.float64)
    centred[..., :2] -= pose[..., None, 4:6]
    return np.asarray(centred @ turn)


def frontal(points: np.ndarray, pose: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Meshes in canonical space with their unknown depth offset removed: stable points lie where canonical's do."""
    turned = canonical[STABLE] @ np.swapaxes(rotation(pose[..., 0], pose[..., 1], pose[..., 2]), -1, -2)
    depth = points[..., STABLE, 2].mean(-1) - pose[..., 3] * turned[..., 2].mean(-1)
    centred = points.astype(np.float64)
    centred[..., 2] -= depth[..., None]
    return to_canonical(centred, pose)


def mirror_pairs(mean: np.ndarray) -> np.ndarray:
    """For each vertex of a nearly symmetric face (n, 3), its twin on the other side."""
    from scipy.optimize import linear_sum_assignment

    flipped = mean * np.array([-1, 1, 1])
    distance = np.linalg.norm(mean[:, None] - flipped[None], axis=-1)
    return np.asarray(linear_sum_assignment(np.square(distance))[1])


def _facing(shape: np.ndarray) -> np.ndarray:
    """A face turned (yaw and roll) so that its plane of symmetry is x = 0."""
    across = shape - shape[mirror_pairs(shape)]
    normal = (np.sign(shape[:, :1]) * across).sum(0)
    x = normal / np.linalg.norm(normal)
    y = np.array([0.0, 1.0, 0.0]) - x[1] * x
    y /= np.linalg.norm(y)
    return np.asarray(shape @ np.stack([x, y, np.cross(x, y)], 1))


def canonical_face(meshes: np.ndarray, *, rounds: int = 4) -> np.ndarray:
    """Generalised Procrustes mean of meshes (k, 468, 3), symmetric, frontal, centred, face height 1: (468, 3)."""
    meshes = meshes.astype(np.float64)
    mean = (meshes - meshes.mean(1, keepdims=True)).mean(0)
    for _ in range(rounds):
        turn, scale, shift = _similarity(meshes, np.broadcast_to(mean, meshes.shape))
        aligned = scale[:, None, None] * meshes @ np.swapaxes(turn, -1, -2) + shift[:, None]
        mean = _facing(aligned.mean(0) - aligned.mean((0, 1)))
        mean /= np.linalg.norm(mean[TOP] - mean[CHIN])
    twins = mirror_pairs(mean)
    mean = (mean + (mean * np.array([-1, 1, 1]))[twins]) / 2
    return np.asarray((mean - mean.mean(0)) / np.linalg.norm(mean[TOP] - mean[CHIN]))


def _falloff(shape: np.ndarray, moved: np.ndarray, shift: np.ndarray, reach: float) -> np.ndarray:
    """Displacement (n, 3) that is ``shift`` at the vertices ``moved`` and fades with the distance from them."""
    distance = np.linalg.norm(shape[:, None, :2] - shape[None, moved, :2], axis=-1)
    near = np.exp(-np.square(distance / (0.35 * reach))) + 1e-12
    mean = (near / near.sum(1, keepdims=True)) @ shift
    return np.asarray(mean * np.exp(-np.square(distance.min(1) / reach))[:, None])


def close_lips(shape: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Brings the lips of a canonical shape (468, 3) together.

    Args:
        opening: (468, 3) how a driver's face moves per unit of inner-lip gap: carries jaw and cheeks along.
    """
    out = shape.copy()
    gap = float(np.median((out[INNER_LOWER] - out[INNER_UPPER])[3:8, 1]))
    if gap > 0.004:
        out -= gap * opening
    # What is left: the upper lip comes a third of the way, the lower lip and the chin the rest.
    left = out[INNER_LOWER] - out[INNER_UPPER]
    moved = np.concatenate([np.tile(left / 3, (4, 1)), np.tile(-left * 2 / 3, (4, 1))])
    vertices = np.concatenate([UPPER_LIPS.ravel(), LOWER_LIPS.ravel()])
    delta = _falloff(out, vertices, moved, reach=0.06)
    delta[vertices] = moved
    corners = np.concatenate([UPPER_LIPS[:, [0, -1]].ravel()])
    delta[corners] = 0
    return out + delta


def face_triangles(canonical: np.ndarray) -> np.ndarray:
    """(n, 3) triangles of the frontal face, its deepest vertex first; lips and lids, which do fold, left out."""
    from scipy.spatial import Delaunay

    triangles = Delaunay(canonical[:, :2]).simplices
    triangles = triangles[np.abs(signed_areas(canonical, triangles)) > 2e-5]
    folding = np.concatenate([LIPS, UPPER_LIDS.ravel(), LOWER_LIDS.ravel(), CREASES.ravel(), EYE_CORNERS.ravel()])
    triangles = triangles[~np.isin(triangles, folding).any(1)]
    first = canonical[triangles, 2].argmax(1)
    turned = (first[:, None] + np.arange(3)) % 3
    return np.take_along_axis(triangles, turned, 1)


def signed_areas(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(n,) signed areas of triangles of points (m, 2 or 3), in the x, y plane."""
    a, b, c = (points[triangles[:, i], :2] for i in range(3))
    return np.asarray(((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2)


def hidden_vertices(points: np.ndarray, canonical: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Vertices on the far side of a turned face: the deepest ones of triangles that show their back."""
    flipped = signed_areas(points, triangles) * np.sign(signed_areas(canonical, triangles)) <= 0
    return np.unique(triangles[flipped, 0])


def _eye_opening(shape: np.ndarray) -> np.ndarray:
    """(..., 2) mean opening of the right and the left eye."""
    return np.asarray(
        np.linalg.norm(shape[..., UPPER_LIDS[:, 2:5], :] - shape[..., LOWER_LIDS[:, 2:5], :], axis=-1).mean(-1)
    )


def lid_closure(driver_neutral: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """(..., 2) how far each eye is closed: 0 as in the neutral face, 1 closed, negative wider open."""
    loss = 1 - _eye_opening(driver_neutral + expression) / _eye_opening(driver_neutral)
    return np.asarray(np.clip(loss / FULL_CLOSURE, -0.25, 1))


def transfer(neutral: np.ndarray, driver_neutral: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """A driver's expression on another face.

    Displacements are scaled by the ratio of mouth widths; lids are placed by how far the driver's are closed; lips
    that would cross meet halfway.

    Args:
        neutral: (468, 3) canonical shape of the face, lips closed.
        driver_neutral: (468, 3) of the driver.
        expression: (468, 3) displacement of the driver from its neutral shape.

    Returns:
        (468, 3) canonical shape with the expression.
    """
    widths = [np.linalg.norm(face[61] - face[291]) for face in (neutral, driver_neutral)]
    out = neutral + expression * np.clip(widths[0] / widths[1], 0.7, 1.35)
    closure = lid_closure(driver_neutral, expression)
    for eye in (0, 1):
        upper, lower, crease = UPPER_LIDS[eye], LOWER_LIDS[eye], CREASES[eye]
        travel = (neutral[lower] - neutral[upper]) * closure[eye]
        out[upper] = neutral[upper] + LID_TRAVEL * travel
        out[crease] = neutral[crease] + CREASE_TRAVEL * travel
        still = np.concatenate([lower, EYE_CORNERS[eye]])
        out[still] = neutral[still]
    crossed = out[INNER_UPPER, 1] > out[INNER_LOWER, 1]
    middle = (out[INNER_UPPER] + out[INNER_LOWER]) / 2
    out[INNER_UPPER[crossed]] = out[INNER_LOWER[crossed]] = middle[crossed]
    return out


def brow_moves(neutral: np.ndarray) -> np.ndarray:
    """Displacements (2, 468, 3) of a face at rest (468, 3) with its brows fully raised, and with a full frown."""
    brows = BROWS.ravel()
    inwards = np.repeat([1.0, -1.0], BROWS.shape[1])  # the right brow is on the left
    raised, frowning = np.zeros((2, len(brows), 3))
    raised[:, 1] = -np.tile(BROW_RAISE, 4)
    frowning[:, 1], frowning[:, 0] = np.tile(BROW_FROWN[0], 4), np.tile(BROW_FROWN[1], 4) * inwards
    moves = np.stack([_falloff(neutral, brows, shift, reach=0.05) for shift in (raised, frowning)])
    moves[:, brows] = [raised, frowning]
    still = np.concatenate([LIPS, UPPER_LIDS.ravel(), LOWER_LIDS.ravel(), CREASES.ravel(), EYE_CORNERS.ravel()])
    moves[:, np.setdiff1d(np.concatenate([STABLE, still]), brows)] = 0
    return moves
