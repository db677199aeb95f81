"""Generated scenes: boxes that move with known ids, and what a detector makes of them. Times are seconds, boxes xyxy pixels.

No public set of tracked objects comes in a package, so these stand in for them: people who cross, hide behind each other and
behind pillars, turn on the spot, stand in crowds, and cars that stop and go. A detector misses what is hidden, shakes, doubts,
and sees what is not there; of two boxes that lie on each other it keeps one.
"""

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 1280, 720
# Steps of the simulation in seconds; frames are taken at whole steps.
STEP = 1 / 60


@dataclass
class Frame:
    """One frame: `truth` {id: box} of what can be seen, `boxes` [n, 4], `scores` [n]."""

    time: float
    truth: dict
    boxes: np.ndarray
    scores: np.ndarray


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every box of a [n, 4] with every box of b [m, 4]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9)


# === how things move: [steps, objects, 4] boxes, and depths (smaller is nearer) ===


def boxes_of(centers: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    half = np.stack([width, height], axis=-1) / 2
    return np.concatenate([centers - half, centers + half], axis=-1)


def people(rng, count):
    """Extents of people: taller ones are nearer."""
    height = rng.uniform(90, 220, count)
    return height * rng.uniform(0.35, 0.45, count), height


def cross(rng, steps, count=14):
    """Two rows that walk through each other."""
    width, height = people(rng, count)
    side = np.where(np.arange(count) % 2 == 0, 1, -1)
    speed = side * rng.uniform(0.9, 1.8, count) * height / 1.7
    start = np.where(side > 0, rng.uniform(-300, 500, count), rng.uniform(780, 1580, count))
    time = np.arange(steps)[:, None] * STEP
    x = start + speed * time
    y = 460 + rng.uniform(-60, 60, count) + 4 * np.sin(time * 6 + rng.uniform(0, 6, count))
    return boxes_of(np.stack([x, y], axis=-1), width, height), -height


def wander(rng, steps, count=12, agility=1.5, speed=1.2):
    """People who go where they like, and turn back at the edges."""
    width, height = people(rng, count)
    at = np.stack([rng.uniform(100, WIDTH - 100, count), rng.uniform(200, HEIGHT - 150, count)], axis=-1)
    scale = (height / 1.7)[:, None]
    angle = rng.uniform(0, 2 * np.pi, count)
    velocity = np.stack([np.cos(angle), 0.4 * np.sin(angle)], axis=-1) * speed * scale
    low, high = np.array([40, 150]), np.array([WIDTH - 40, HEIGHT - 100])
    path = []
    for _ in range(steps):
        push = rng.normal(size=(count, 2)) * scale * agility * np.sqrt(STEP) * np.array([1, 0.4])
        velocity = velocity * (1 - 0.3 * STEP) + push
        at = at + velocity * STEP
        out = (at < low) | (at > high)
        velocity = np.where(out, np.where(at < low, abs(velocity), -abs(velocity)), velocity)
        path.append(at)
    return boxes_of(np.array(path), width, height), -height


def crowd(rng, steps):
    return wander(rng, steps, count=36, agility=0.8, speed=0.7)


def dance(rng, steps, count=9):
    """People who look alike, sway, and turn round at once."""
    height = rng.uniform(170, 200, count)
    width = height * 0.45
    time = np.arange(steps)[:, None] * STEP
    home = np.stack([np.linspace(200, WIDTH - 200, count), 380 + rng.uniform(-40, 40, count)], axis=-1)
    rate, phase = rng.uniform(0.25, 0.6, count), rng.uniform(0, 1, count)
    # A triangle: straight, then back.
    swing = 4 * abs((time * rate + phase) % 1 - 0.5) - 1
    x = home[:, 0] + swing * rng.uniform(80, 260, count)
    y = home[:, 1] + 20 * np.sin(2 * np.pi * time * rng.uniform(0.3, 0.8, count))
    return boxes_of(np.stack([x, y], axis=-1), width, height), rng.permutation(count)


def cars(rng, steps, count=8):
    """Cars in lanes that come nearer, stop and go on."""
    time = np.arange(steps)[:, None] * STEP
    lane = np.arange(count) % 4
    going = np.where(lane < 2, 1, -1)
    stop, wait = rng.uniform(1, 6, count), rng.uniform(0, 2, count)
    moved = np.where(time < stop, time, np.maximum(time - wait, stop))
    x = np.where(going > 0, -200, WIDTH + 200) + going * (moved * rng.uniform(140, 320, count) - rng.uniform(0, 500, count))
    y = 250 + 110 * lane + rng.uniform(-10, 10, count)
    height = 60 + 22 * lane + rng.uniform(-5, 5, count)
    return boxes_of(np.stack([x, np.broadcast_to(y, x.shape)], axis=-1), height * 2.2, height), -lane


KINDS = {"cross": cross, "wander": wander, "crowd": crowd, "dance": dance, "cars": cars}
# What stands in front of all, where it does.
PILLARS = {"wander": [(380, 0, 470, 720), (860, 0, 930, 720)], "cross": [(590, 0, 690, 720)]}


# === what a camera and a detector make of it ===


def shown(boxes: np.ndarray, depths: np.ndarray, pillars) -> np.ndarray:
    """The share of each box that is in the picture and hidden by nothing, by a grid of 10 x 10 points."""
    share = (np.arange(10) + 0.5) / 10
    extent = boxes[:, None, 2:] - boxes[:, None, :2]
    grid = np.stack(np.meshgrid(share, share), axis=-1).reshape(-1, 2)
    points = boxes[:, None, :2] + grid[None] * extent
    seen = ((points >= 0) & (points < (WIDTH, HEIGHT))).all(axis=2)
    for other, depth in [*zip(boxes, depths), *((np.array(pillar), -np.inf) for pillar in pillars)]:
        within = ((points > other[:2]) & (points < other[2:])).all(axis=2)
        seen &= ~(within & (depths > depth)[:, None])
    return seen.mean(axis=1)


def detect(rng, boxes: np.ndarray, visible: np.ndarray, clutter: np.ndarray):
    """Boxes and scores that a detector gives for boxes of which so much is visible."""
    found = rng.uniform(size=len(boxes)) < np.clip(0.3 + 0.9 * visible, 0, 0.97)
    size = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))[:, None]
    shaken = boxes + rng.normal(size=boxes.shape) * size * (0.03 + 0.06 * (1 - visible))[:, None]
    scores = 0.9 - 0.7 * (1 - visible) + rng.normal(size=len(boxes)) * 0.08
    false = rng.poisson(0.3)
    corners, extents = rng.uniform((0, 0), (WIDTH, HEIGHT), (false, 2)), rng.uniform((40, 90), (90, 220), (false, 2))
    fires = clutter[rng.uniform(size=len(clutter)) < 0.25]
    shaken = np.concatenate([shaken[found], np.concatenate([corners, corners + extents], axis=1), fires])
    doubt = rng.uniform(0.1, 0.8, false), rng.uniform(0.2, 0.65, len(fires))
    scores = np.clip(np.concatenate([scores[found], *doubt]), 0.01, 0.99)
    order = np.argsort(-scores, kind="stable")
    shaken, scores = shaken[order].astype(np.float32), scores[order].astype(np.float32)
    ious, kept = overlap(shaken, shaken), []
    for index in range(len(shaken)):
        if all(ious[index, other] <= 0.7 for other in kept):
            kept.append(index)
    return shaken[kept], scores[kept]


def scene(kind: str, seed: int, times) -> list[Frame]:
    """The frames of a scene at these times; equal seeds move alike whatever the times."""
    times = np.asarray(times)
    paths, depths = KINDS[kind](np.random.default_rng([seed, 1]), round(times[-1] / STEP) + 1)
    noise = np.random.default_rng([seed, 2])
    corner = noise.uniform((0, 0), (WIDTH, HEIGHT), (3, 2))
    clutter = np.concatenate([corner, corner + noise.uniform(50, 150, (3, 2))], axis=1)
    frames = []
    for time in times:
        boxes = paths[round(time / STEP)]
        visible = shown(boxes, np.asarray(depths, float), PILLARS.get(kind, []))
        there = np.flatnonzero(visible >= 0.2)
        found, scores = detect(noise, boxes[there], visible[there], clutter)
        frames.append(Frame(float(time), {int(id): boxes[id] for id in there}, found, scores))
    return frames


# === when frames are taken ===


def times(rate: str, seconds: float, seed: int = 0) -> np.ndarray:
    """Times of frames: "30", "10", "5" fps; "dropped" of 30 in bursts; "changing" between 30, 6 and 15 fps."""
    every = {"30": 2, "10": 6, "5": 12}.get(rate)
    steps = round(seconds / STEP)
    if every:
        return np.arange(0, steps, every) * STEP
    if rate == "dropped":
        rng, kept, at = np.random.default_rng([seed, 3]), [], 0
        while at < steps:
            kept.append(at)
            at += 2 * (1 + (int(rng.integers(1, 13)) if rng.uniform() < 0.15 else 0))
        return np.array(kept) * STEP
    assert rate == "changing", rate
    kept, at = [], 0
    while at < steps:
        kept.append(at)
        at += (2, 10, 4)[int(at * STEP / 2) % 3]
    return np.array(kept) * STEP
