"""Tracks beside those of PyPI `trackers` on the same detections, scored by TrackEval, on scenes that no default was chosen by."""

import json

import pytest
from scenes import KINDS
from tracking import RATES, measure, ours

SEEDS, SECONDS = (100, 101), 8.0


@pytest.mark.parametrize("rate", RATES)
def test_ids_are_at_least_as_good_as_those_of_bytetrack_and_oc_sort(rate):
    found = measure(rate, KINDS, SEEDS, SECONDS)
    print("\n" + "\n".join(f"{rate:9} {name:17} HOTA {scores['HOTA']:.1f}" for name, scores in found.items()))
    mine = found.pop("frostline")["HOTA"]
    assert len(found) == 4 and min(scores["HOTA"] for scores in found.values()) > 5, "a rival does not work"
    better = {name: scores["HOTA"] for name, scores in found.items() if scores["HOTA"] > mine}
    assert not better, f"frostline has {mine:.1f}"


def test_an_object_is_followed_without_a_fault_where_there_is_none_in_its_detections():
    """All of the score that can be had: the first frame of each object has no id yet."""
    rows = []
    for frame in range(60):
        boxes = [[10 + 200 * n + 3 * frame, 50, 90 + 200 * n + 3 * frame, 200] for n in range(4)]
        rows.append(json.dumps({"time": frame / 20, "detections": [{"box": box, "score": 0.9} for box in boxes]}))
    ids = ours("\n".join(rows))
    assert ids[0] == [None] * 4 and all(row == [1, 2, 3, 4] for row in ids[1:]) and len(ids) == 60
