"""Every head on one picture, from one pass of the backbone.

usage: python analyze.py ADDRESS IMAGE
"""

import sys

from frostline_client import Client, Detections, Segmentation


def main(address: str, image: str) -> None:
    with Client(address) as client:
        answer = client.analyze(image)
    for head, result in answer.results.items():
        match result:
            case Detections():
                for found in result:
                    x_min, y_min, x_max, y_max = found.box
                    area = found.mask.area if found.mask else 0
                    print(f"{head}: {found.label} {found.score:.2f} at {x_min:.0f},{y_min:.0f},{x_max:.0f},{y_max:.0f}, {area} pixels")
            case Segmentation():
                for segment in result.segments:
                    print(f"{head}: {segment.label} covers {segment.pixels / (result.size[0] * result.size[1]):.0%}")
            case _:
                print(f"{head}: {result}")
    seconds = answer.provenance.seconds
    print(f"backbone: {answer.provenance.backbone_rows} run, {seconds['total'] * 1e3:.1f} ms in all")


if __name__ == "__main__":
    main(*sys.argv[1:])
