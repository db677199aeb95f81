"""Attacks on what callers may know of each other and may do."""

import payloads
import wire
from payloads import VISION
from plan import Target, attack
from server import Options

PERMISSION_DENIED, OK, CACHED = "7", "0", 3


def fields_of(message: bytes) -> dict[int, list[bytes | int]]:
    """The fields of a message, as far as they are numbers, or bytes with a length."""
    found: dict[int, list[bytes | int]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = number()
        match key & 7:
            case 0:
                value = number()
            case 2:
                size = number()
                value, at = message[at : at + size], at + size
            case 1:
                value, at = message[at : at + 8], at + 8
            case _:
                value, at = message[at : at + 4], at + 4
        found.setdefault(key >> 3, []).append(value)
    return found


def source(answer: bytes) -> int:
    """Where the features of an answer of Detect came from."""
    provenance = fields_of(answer[5:]).get(4, [b""])[0]
    return int(fields_of(provenance).get(2, [0])[0])


def ask(connection: wire.Connection, path: str, token: str, body: bytes) -> bytes:
    """One answer."""
    stream = connection.call(wire.call(path, token), wire.message(body))
    connection.settle([stream], 10)
    return bytes(connection.data.pop(stream, b""))


@attack(
    "prime-probe",
    "fills the cache and looks later what another identity's calls have pushed out",
    caller=True,
    seconds=20,
    options=Options(settings={"engine.cache_bytes": 12 << 20}),
)
def prime_probe(t: Target) -> None:
    connection = t.connect().watch(data=True)
    path, token = f"{VISION}Detect", t.tokens["evil"]
    pictures = [payloads.detect(payloads.small(5000 + seed)) for seed in range(8)]
    pushed_out = looked = rounds = 0
    while t.left > 5:
        for body in pictures:
            ask(connection, path, token, body)
        # They are in the cache now, unless it keeps nothing.
        kept = [source(ask(connection, path, token, body)) == CACHED for body in pictures]
        # The good caller sends fifty pictures meanwhile.
        wire.pump([connection], 5)
        after = [source(ask(connection, path, token, body)) == CACHED for body in pictures]
        looked += sum(kept)
        pushed_out += sum(before and not still for before, still in zip(kept, after))
        rounds += 1
        t.sent(3 * len(pictures))
    t.notes |= {"rounds": rounds, "in the cache": looked, "pushed out": pushed_out}
    if looked == 0:
        t.faults.append("nothing was kept in the cache: this says nothing")
    if pushed_out:
        t.faults.append(f"the other's calls pushed out {pushed_out} of {looked} entries, which shows how many there were")


@attack("narrow", "an identity with one head asks for the backbone's features, and for other heads", caller=True, seconds=5)
def narrow(t: Target) -> None:
    token = t.tokens["narrow"]
    picture = payloads.small(7)
    for what, path, body, expected in (
        ("its own head", f"{VISION}Detect", payloads.detect(picture), OK),
        ("features", f"{VISION}ExtractFeatures", payloads.features(picture), PERMISSION_DENIED),
        ("features of the backbone as a model", payloads.INFER, payloads.infer("swinv2-nano-128", [picture]), PERMISSION_DENIED),
        ("another head", f"{VISION}Segment", payloads.segment(picture), PERMISSION_DENIED),
        ("no head named", f"{VISION}Analyze", payloads.field(1, payloads.image(picture)), OK),
    ):
        connection = t.connect().watch(data=True)
        ask(connection, path, token, body)
        t.sent(1, len(body))
        got = dict(connection.statuses)
        t.notes[what] = got
        if got != {expected: 1}:
            t.faults.append(f"{what}: statuses {got}, expected {expected}")
