"""Physical constants, each derived once from the one before, with its unit.

No other file may spell these numbers: audio, video and motion stay in step because they share this arithmetic.
"""

from __future__ import annotations


def exact_div(numerator: int, denominator: int) -> int:
    """Integer division that refuses a remainder.

    Raises:
        ValueError: if ``denominator`` does not divide ``numerator``.
    """
    if numerator % denominator:
        raise ValueError(f"{denominator} does not divide {numerator}")
    return numerator // denominator


SAMPLE_RATE = 16_000  # audio samples per second (Whisper's)
FPS = 25  # video frames per second (paper, Table 4)
SAMPLES_PER_FRAME = exact_div(SAMPLE_RATE, FPS)  # 640 samples: 40 ms

CHUNK_FRAMES = 16  # motion tokens made by one pass of the generator (paper, section 4.1): 640 ms
CONTEXT_FRAMES = 8  # previous motion tokens that the generator sees (paper, section 4.1): 320 ms
FEATURE_FRAMES = CONTEXT_FRAMES + CHUNK_FRAMES  # frames of audio features that go with one pass

MEL_HOP = 160  # samples between mel frames: 10 ms
MEL_WINDOW = 400  # samples in one mel frame's analysis window: 25 ms
MEL_BINS = 80  # mel bands of Whisper tiny .. medium
ENCODER_STRIDE = 2  # mel frames per Whisper feature: 20 ms
FEATURES_PER_FRAME = exact_div(SAMPLES_PER_FRAME, MEL_HOP * ENCODER_STRIDE)  # 2 Whisper features a video frame

WINDOW_FRAMES = 64  # video frames heard by one pass: a trailing window of 2.56 s
WINDOW_MELS = exact_div(WINDOW_FRAMES * SAMPLES_PER_FRAME, MEL_HOP)  # 256 mel frames
# A mel frame ends with the hop that it belongs to (no look-ahead), so the first one reaches back this far:
MEL_HISTORY = MEL_WINDOW - MEL_HOP  # 240 samples
WINDOW_SAMPLES = WINDOW_FRAMES * SAMPLES_PER_FRAME + MEL_HISTORY  # 41 200 samples into the audio graph

IMAGE_SIZE = 256  # pixels, both sides of the square crop (paper, Table 4)

# Pose and expression of a face as :mod:`semo_sdk.training.teacher` writes them into a motion token, all of order one:
# yaw, pitch and roll in radians x 5, log(face height / 128 px) x 5, offset from the image's centre / 64 px; 24
# coefficients of expression.
POSE_SIZE, EXPRESSION_SIZE = 6, 24
TAUGHT_SIZE = POSE_SIZE + EXPRESSION_SIZE
ANGLE_UNIT, SIZE_UNIT = 5.0, 5.0
SCALE_UNIT, OFFSET_UNIT = 128.0, 64.0  # pixels
CONTROLS = POSE_SIZE + 1  # directions of token space that an app can turn: those of the pose, and closing the eyes

# Lines of the face mesh (MediaPipe's numbers) across the right and the left eye, from corner to corner.
UPPER_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (263, 466, 388, 387, 386, 385, 384, 398, 362))
LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (263, 249, 390, 373, 374, 380, 381, 382, 362))
EYE_CREASES = ((33, 247, 30, 29, 27, 28, 56, 190, 133), (263, 467, 260, 259, 257, 258, 286, 414, 362))
# Four rings of lips from the outside in, eleven columns from the right corner of the mouth to the left one.
UPPER_LIPS = (
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
    (76, 184, 74, 73, 72, 11, 302, 303, 304, 408, 306),
    (62, 183, 42, 41, 38, 12, 268, 271, 272, 407, 292),
    (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
)
LOWER_LIPS = (
    (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
    (76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306),
    (62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292),
    (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
)
