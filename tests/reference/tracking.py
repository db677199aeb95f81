"""Scores of `frostline track` beside those of PyPI `trackers`, on generated scenes whose ids are known, by TrackEval.

    tests/.venv/bin/python tests/reference/tracking.py [--seeds 6] [--seconds 20]

prints more of what deploy/TRACKING.md shows. All get the same detections and are used as they come; the rivals once as they are
called by default, which counts frames, and once with each frame's time.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import supervision
from scenes import KINDS, Frame, overlap, scene, times
from trackers import ByteTrackTracker, OCSORTTracker
from trackeval.metrics import CLEAR, HOTA, Identity

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("FROSTLINE_BINARY", ROOT / "target/debug/frostline")
RATES = {"30": 30, "10": 10, "5": 5, "dropped": 30, "changing": 30}
RIVALS = {"ByteTrack": ByteTrackTracker, "OC-SORT": OCSORTTracker}

# For each frame, for each detection: an id, or None.
Ids = list[list[int | None]]


def lines(frames: list[Frame]) -> str:
    """What `frostline track` reads."""
    rows = []
    for frame in frames:
        found = [{"box": box.tolist(), "score": float(score)} for box, score in zip(frame.boxes, frame.scores)]
        rows.append(json.dumps({"time": frame.time, "detections": found}))
    return "\n".join(rows)


def ours(text: str) -> Ids:
    """The ids of frames in lines of JSON."""
    # The command takes its settings from variables of this prefix.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
    command = [BINARY, "track"]
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=True, env=environment)
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    return [[found["track_id"] for found in row["detections"]] for row in rows]


def rival(make, frames: list[Frame], fps: float | None) -> Ids:
    """`fps`: the rate that it is told, and each frame's time with it; None: neither."""
    tracker = make() if fps is None else make(frame_rate=fps)
    answers = []
    for frame in frames:
        count = len(frame.scores)
        given = supervision.Detections(
            xyxy=frame.boxes.reshape(-1, 4).astype(float),
            confidence=frame.scores.astype(float),
            class_id=np.zeros(count, int),
            data={"index": np.arange(count)},
        )
        found = tracker.update(given, timestamp=None if fps is None else frame.time)
        ids = [None] * count
        if len(found):
            for index, id in zip(found.data["index"], found.tracker_id):
                ids[index] = int(id) if id >= 0 else None
        answers.append(ids)
    return answers


def numbered(frames: list[Frame], ids: Ids) -> dict:
    """One sequence in TrackEval's form."""
    true = {id: place for place, id in enumerate(sorted({id for frame in frames for id in frame.truth}))}
    given = {id: place for place, id in enumerate(sorted({id for row in ids for id in row if id is not None}))}
    data = {"gt_ids": [], "tracker_ids": [], "similarity_scores": [], "num_timesteps": len(frames)}
    for frame, row in zip(frames, ids):
        kept = [index for index, id in enumerate(row) if id is not None]
        data["gt_ids"].append(np.array([true[id] for id in frame.truth], int))
        data["tracker_ids"].append(np.array([given[row[index]] for index in kept], int))
        truth = np.array(list(frame.truth.values())).reshape(-1, 4)
        data["similarity_scores"].append(overlap(truth, frame.boxes[kept].reshape(-1, 4).astype(float)))
    data |= {"num_gt_ids": len(true), "num_tracker_ids": len(given)}
    data |= {f"num_{of}_dets": sum(map(len, data[f"{of}_ids"])) for of in ("gt", "tracker")}
    return data


def score(sequences: list[tuple[list[Frame], Ids]]) -> dict[str, float]:
    """HOTA, its parts, IDF1 in percent, and switches of id, over all sequences together."""
    data = [numbered(frames, ids) for frames, ids in sequences]
    quiet = {"PRINT_CONFIG": False}
    found = {}
    for metric in (HOTA(), Identity(quiet), CLEAR(quiet)):
        each = {str(place): metric.eval_sequence(one) for place, one in enumerate(data)}
        found |= metric.combine_sequences(each)
    share = {name: 100 * float(np.mean(found[name])) for name in ("HOTA", "DetA", "AssA", "IDF1")}
    return share | {"switches": int(found["IDSW"])}


def measure(rate: str, kinds, seeds, seconds: float) -> dict[str, dict[str, float]]:
    """Scores by tracker."""
    scenes = [scene(kind, seed, times(rate, seconds, seed)) for kind in kinds for seed in seeds]
    answers = {"frostline": [ours(lines(frames)) for frames in scenes]}
    for name, make in RIVALS.items():
        answers[name] = [rival(make, frames, None) for frames in scenes]
        answers[f"{name}, timed"] = [rival(make, frames, RATES[rate]) for frames in scenes]
    return {name: score(list(zip(scenes, ids))) for name, ids in answers.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20)
    chosen = parser.parse_args()
    seeds = range(100, 100 + chosen.seeds)
    print("| frames | tracker | HOTA | DetA | AssA | IDF1 | switches |\n|---|---|---|---|---|---|---|")
    for rate in RATES:
        for name, found in measure(rate, KINDS, seeds, chosen.seconds).items():
            figures = " | ".join(f"{found[figure]:.1f}" for figure in ("HOTA", "DetA", "AssA", "IDF1"))
            print(f"| {rate} | {name} | {figures} | {found['switches']} |", flush=True)


if __name__ == "__main__":
    main()
