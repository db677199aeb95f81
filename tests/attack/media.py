"""Attacks by pictures: few bytes, many pixels."""

import os
import time
from pathlib import Path

import payloads
import wire
from payloads import VISION
from plan import Target, attack

TICKS = os.sysconf("SC_CLK_TCK")


@attack("webp-batch", "one call of 64 WebPs of 7071 x 7071 in 34 bytes each, label maps as PNG", caller=True, seconds=20)
def webp_batch(t: Target) -> None:
    body = payloads.infer("scene", [payloads.webp()] * t.many(64), ["label_map_png"])
    t.keep(payloads.INFER, lambda _: body, 1)


@attack("webp-batch-plain", "the same, label maps as numbers", caller=True, seconds=20)
def webp_batch_plain(t: Target) -> None:
    body = payloads.infer("scene", [payloads.webp()] * t.many(64))
    t.keep(payloads.INFER, lambda _: body, 1)


@attack("masks-batch", "64 such pictures, dense masks of every box of each", caller=True, seconds=20)
def masks_batch(t: Target) -> None:
    low = payloads.parameter("score_threshold", 0)
    body = payloads.infer("objects", [payloads.webp()] * t.many(64), ["masks_dense"]) + low
    t.keep(payloads.INFER, lambda _: body, 1)


@attack("webp-clip", "a clip of 64 such pictures for all heads", caller=True, seconds=20)
def webp_clip(t: Target) -> None:
    body = payloads.analyze([payloads.webp()] * t.many(64))
    t.keep(f"{VISION}Analyze", lambda _: body, 1)


@attack("webp", "Detect on such a picture of 34 bytes, 4 at once", caller=True, seconds=12)
def webp(t: Target) -> None:
    # Sides that differ keep them from sharing a run.
    body = lambda number: payloads.detect(payloads.webp(payloads.SIDE - number % 16))
    t.keep(f"{VISION}Detect", body, t.many(4))


@attack("masks", "Detect on such pictures with masks of every box, 4 at once", caller=True, seconds=12)
def masks(t: Target) -> None:
    body = lambda number: payloads.detect(payloads.webp(payloads.SIDE - number % 16), options=payloads.ALL_BOXES)
    t.keep(f"{VISION}Detect", body, t.many(4))


@attack("label-maps", "20 Segment of 94 bytes at once", caller=True, seconds=20)
def label_maps(t: Target) -> None:
    body = lambda number: payloads.segment(payloads.webp(payloads.SIDE - number % 64))
    t.keep(f"{VISION}Segment", body, t.many(20))


@attack("label-maps-once", "20 Segment of 94 bytes, once, then nothing", caller=True, seconds=20)
def label_maps_once(t: Target) -> None:
    connection = t.connect().watch()
    fields = wire.call(f"{VISION}Segment", t.tokens["evil"])
    for number in range(t.many(20)):
        connection.call(fields, wire.message(payloads.segment(payloads.webp(payloads.SIDE - number))))
        t.sent(1, 94)
    t.hold()


@attack("in-flight", "400 small calls kept in flight", caller=True, seconds=15)
def in_flight(t: Target) -> None:
    t.keep(f"{VISION}Detect", lambda number: payloads.detect(payloads.small(1000 + number % 500)), t.many(400))


@attack("in-flight-heads", "400 small calls of three kinds kept in flight", caller=True, seconds=15)
def in_flight_heads(t: Target) -> None:
    pictures = [payloads.small(2000 + seed) for seed in range(64)]
    bodies = [
        payloads.analyze([pictures[number % 64]] * 1, ["objects", "scene"]) if number % 2 else
        payloads.analyze([pictures[(number + shift) % 64] for shift in range(8)], ["motion"])
        for number in range(64)
    ]
    t.keep(f"{VISION}Analyze", lambda number: bodies[number % len(bodies)], t.many(400))


@attack("in-flight-flows", "600 calls in flight for each of four models", caller=True, seconds=15)
def in_flight_flows(t: Target) -> None:
    pictures = [payloads.small(3000 + seed) for seed in range(64)]
    kinds = [
        (f"{VISION}Detect", lambda number: payloads.detect(pictures[number % 64])),
        (f"{VISION}Segment", lambda number: payloads.segment(pictures[number % 64])),
        (f"{VISION}ExtractFeatures", lambda number: payloads.features(pictures[number % 64])),
        (f"{VISION}RecognizeAction", lambda number: payloads.field(1, payloads.field(1, payloads.image(pictures[number % 64])) * 8)),
    ]
    live = [(t.connect().watch(), path, body) for path, body in kinds]
    open_: dict[int, list[int]] = {index: [] for index in range(len(live))}
    number = 0
    while t.left > 0:
        for index, (connection, path, body) in enumerate(live):
            open_[index] = [stream for stream in open_[index] if stream not in connection.answered]
            # A few at a time, so that each kind finds its places.
            for _ in range(min(50, t.many(600) - len(open_[index]))):
                message = wire.message(body(number))
                open_[index].append(connection.call(wire.call(path, t.tokens["evil"]), message))
                t.sent(1, len(message))
                number += 1
        wire.pump([entry[0] for entry in live], 0.01)


@attack("progressive", "JPEGs of 97 scans, 2 at once", caller=True, seconds=15)
def progressive(t: Target) -> None:
    bodies = [payloads.detect(payloads.progressive(5800 - 8 * turn)) for turn in range(3)]
    t.keep(f"{VISION}Detect", lambda number: bodies[number % len(bodies)], t.many(2))


@attack("progressive-cancelled", "the same, given up after 0.2 s, again and again", caller=True, seconds=15)
def progressive_cancelled(t: Target) -> None:
    bodies = [payloads.detect(payloads.progressive(5800 - 8 * turn)) for turn in range(3)]
    fields = wire.call(f"{VISION}Detect", t.tokens["evil"])
    connection, number = t.connect(), 0
    while t.left > 0 and not connection.closed:
        stream = connection.call(fields, wire.message(bodies[number % len(bodies)]))
        wire.pump([connection], min(0.2, t.left))
        connection.write(wire.reset(stream))
        t.sent(1, len(bodies[0]))
        number += 1


@attack("progressive-deadline", "the same with a deadline of 0.5 s, 8 at once", caller=True, seconds=15)
def progressive_deadline(t: Target) -> None:
    bodies = [payloads.detect(payloads.progressive(5800 - 8 * turn)) for turn in range(3)]
    fields = wire.call(f"{VISION}Detect", t.tokens["evil"], ("grpc-timeout", "500m"))
    connection, number, open_ = t.connect().watch(), 0, []
    while t.left > 0 and not connection.closed:
        open_ = [stream for stream in open_ if stream not in connection.answered]
        while len(open_) < 8 and t.left > 0:
            open_.append(connection.call(fields, wire.message(bodies[number % len(bodies)])))
            number += 1
            t.sent(1, len(bodies[0]))
        wire.pump([connection], 0.02)


@attack("progressive-empty", "JPEGs of 97 scans without a byte, 2 at once", caller=True, seconds=15)
def progressive_empty(t: Target) -> None:
    bodies = [payloads.detect(payloads.progressive(5800 - 8 * turn, empty=True)) for turn in range(3)]
    t.keep(f"{VISION}Detect", lambda number: bodies[number % len(bodies)], t.many(2))


@attack("deep-png", "PNGs of 7071 x 7071 with 16 bits in four channels, 4 at once", caller=True, seconds=15)
def deep_png(t: Target) -> None:
    bodies = [payloads.detect(payloads.png(payloads.SIDE, payloads.SIDE - turn, 16, 6)) for turn in range(2)]
    t.keep(f"{VISION}Detect", lambda number: bodies[number % len(bodies)], t.many(4))


@attack("raw", "pixels of 62 MiB as they are, 8 at once", caller=True, seconds=12)
def raw(t: Target) -> None:
    side = 4650
    pixels = bytes(3 * side * side)
    body = payloads.field(1, payloads.raw(side, side, pixels)) + payloads.field(2, "objects")
    t.keep(f"{VISION}Detect", lambda _: body, t.many(8))


# === pictures with as many bytes as are asked for ===


@attack("edge", "Detect on WebPs of as many pixels as are free, 20 at once", caller=True, seconds=15)
def edge(t: Target) -> None:
    t.keep(f"{VISION}Detect", lambda number: payloads.detect(payloads.edge(number % 64)), t.many(20))


@attack("edge-many", "the same, 400 at once", caller=True, seconds=15)
def edge_many(t: Target) -> None:
    t.keep(f"{VISION}Detect", lambda number: payloads.detect(payloads.edge(number % 64)), t.many(400))


@attack("edge-label-maps", "Segment on such WebPs, 100 at once", caller=True, seconds=15)
def edge_label_maps(t: Target) -> None:
    t.keep(f"{VISION}Segment", lambda number: payloads.segment(payloads.edge(number % 64)), t.many(100))


@attack("edge-masks", "masks of every box of such WebPs, 100 at once", caller=True, seconds=15)
def edge_masks(t: Target) -> None:
    body = lambda number: payloads.detect(payloads.edge(number % 64), options=payloads.ALL_BOXES)
    t.keep(f"{VISION}Detect", body, t.many(100))


@attack("fat", "Detect on WebPs of 50 million pixels with the bytes that are asked for, 20 at once", caller=True, seconds=20)
def fat(t: Target) -> None:
    t.keep(f"{VISION}Detect", lambda number: payloads.detect(payloads.fat(payloads.SIDE - number % 16)), t.many(20))


@attack("fat-label-maps", "Segment on such WebPs, 20 at once", caller=True, seconds=20)
def fat_label_maps(t: Target) -> None:
    t.keep(f"{VISION}Segment", lambda number: payloads.segment(payloads.fat(payloads.SIDE - number % 16)), t.many(20))


@attack("fat-runs", "the same, label maps in runs", caller=True, seconds=20)
def fat_runs(t: Target) -> None:
    body = lambda number: payloads.segment(payloads.fat(payloads.SIDE - number % 16), rle=True)
    t.keep(f"{VISION}Segment", body, t.many(20))


@attack("fat-batch", "calls of 64 such WebPs, label maps as PNG, 4 at once", caller=True, seconds=20)
def fat_batch(t: Target) -> None:
    body = payloads.infer("scene", [payloads.fat()] * t.many(64), ["label_map_png"])
    t.keep(payloads.INFER, lambda _: body, 4)


@attack("fat-clip", "clips of 64 such WebPs for all heads, 4 at once", caller=True, seconds=20)
def fat_clip(t: Target) -> None:
    body = payloads.analyze([payloads.fat()] * t.many(64))
    t.keep(f"{VISION}Analyze", lambda _: body, 4)


@attack("fat-cancelled", "such WebPs, 10 at once, given up after 0.2 s, again and again", caller=True, seconds=15)
def fat_cancelled(t: Target) -> None:
    fields = wire.call(f"{VISION}Detect", t.tokens["evil"])
    connection, number = t.connect(), 0
    while t.left > 0 and not connection.closed:
        open_ = []
        for _ in range(10):
            body = wire.message(payloads.detect(payloads.fat(payloads.SIDE - number % 16)))
            open_.append(connection.call(fields, body))
            t.sent(1, len(body))
            number += 1
        wire.pump([connection], min(0.2, t.left))
        connection.write(b"".join(wire.reset(stream) for stream in open_))


# === what a call costs ===


def pictures() -> dict[str, tuple[str, bytes]]:
    """Calls that cost much, each a path and a message."""
    detect = lambda picture, **options: (f"{VISION}Detect", payloads.detect(picture, **options))
    side = payloads.SIDE
    return {
        "small": detect(payloads.small(5)),
        "webp": detect(payloads.webp()),
        "webp, tall": detect(payloads.webp(3052, 16383)),
        "webp, masks of every box": detect(payloads.webp(), options=payloads.ALL_BOXES),
        "webp, label map": (f"{VISION}Segment", payloads.segment(payloads.webp())),
        "webp, label map in runs": (f"{VISION}Segment", payloads.segment(payloads.webp(), rle=True)),
        "webp, all heads": (f"{VISION}Analyze", payloads.field(1, payloads.image(payloads.webp()))),
        "webp, features": (f"{VISION}ExtractFeatures", payloads.features(payloads.webp())),
        "webp, as many pixels as are free": detect(payloads.edge()),
        "the same, label map": (f"{VISION}Segment", payloads.segment(payloads.edge())),
        "the same, label map in runs": (f"{VISION}Segment", payloads.segment(payloads.edge(), rle=True)),
        "the same, masks of every box": detect(payloads.edge(), options=payloads.ALL_BOXES),
        "webp with its bytes": detect(payloads.fat()),
        "webp with its bytes, label map in runs": (f"{VISION}Segment", payloads.segment(payloads.fat(), rle=True)),
        "png, gray": detect(payloads.png()),
        "png, one bit": detect(payloads.png(depth=1)),
        "png, paeth": detect(payloads.png(colour=2, filter_=4)),
        "png, 16 bits and alpha": detect(payloads.png(depth=16, colour=6)),
        "png, interlaced": detect(payloads.png(adam=True)),
        "jpeg": detect(payloads.pillow("JPEG", quality=10)),
        "jpeg, progressive": detect(payloads.pillow("JPEG", quality=10, progressive=True)),
        "jpeg, 97 scans": detect(payloads.progressive()),
        "jpeg, 97 empty scans": detect(payloads.progressive(empty=True)),
        "jpeg, 97 scans, small": detect(payloads.progressive(1024)),
        "jpeg, 97 scans, gray, largest": detect(payloads.progressive(side, 97, 1)),
        "jpeg, CMYK": detect(payloads.pillow("JPEG", quality=10, mode="CMYK")),
        "gif": detect(payloads.pillow("GIF", mode="P")),
        "bmp, short": detect(payloads.bmp_short()),
        "webp, lossy": detect(payloads.pillow("WEBP", quality=1, method=0)),
        "64 frames": (f"{VISION}Analyze", payloads.analyze([payloads.webp()] * 64)),
        "64 webps, dense masks": (
            payloads.INFER,
            payloads.infer("objects", [payloads.webp()] * 64, ["masks_dense"]) + payloads.parameter("score_threshold", 0),
        ),
        "64 webps": (payloads.INFER, payloads.infer("scene", [payloads.webp()] * 64, ["label_map_png"])),
    }


def process(pid: int) -> tuple[float, int]:
    """Processor seconds and the peak of memory of a process; the peak begins anew."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    status = Path(f"/proc/{pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) >> 10
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        peak = 0
    return (int(fields[11]) + int(fields[12])) / TICKS, peak


# Processor seconds that a valid request may cost: to begin with, and for each kilobyte of it.
FIRST_SECONDS, KILOBYTE_SECONDS = 0.2, 0.05


@attack("cost", "what each kind of costly picture takes, one call after the other", caller=True, seconds=240, alone=True)
def cost(t: Target) -> None:
    for name, (path, body) in pictures().items():
        if t.left == 0:
            t.faults.append(f"no time left for {name}")
            break
        connection = t.connect().watch()
        before, _ = process(t.pid)
        begun = time.monotonic()
        stream = connection.call(wire.call(path, t.tokens["evil"]), wire.message(body))
        answered = connection.settle([stream], 60)
        took = time.monotonic() - begun
        after, peak = process(t.pid)
        seconds, most = after - before, FIRST_SECONDS + KILOBYTE_SECONDS * len(body) / 1000
        t.sent(1, len(body))
        t.notes[name] = {
            "bytes": len(body),
            "cpu_s": round(seconds, 2),
            "most_s": round(most, 2),
            "took_s": round(took, 2),
            "peak_mib": peak,
            "status": dict(connection.statuses),
        }
        if seconds > most or not answered:
            t.faults.append(f"{name}: {seconds:.2f} CPU seconds for {len(body)} bytes, at most {most:.2f}")
        connection.close()
