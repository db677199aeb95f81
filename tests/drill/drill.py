"""A drill: what goes wrong in production goes wrong here, with a real Prometheus and the alerts as they are installed.

usage: drill.py [LOG]

Two servers with callers, and one with TLS. Event by event: the alert that is meant fires within its time and no other does, and
callers of good heads lose nothing. Times in the rules are a twelfth of what they say (SCALE), those of the servers are as they
are. Takes some five minutes; ends with 1 at the first event that goes otherwise.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/deploy"))

from fleet import CHANNEL, Replica, binary, environment, free_ports, protocol  # noqa: E402

SCALE = 12
# Beside an alert's own time: a scrape, an evaluation, and a machine that does something else as well.
SLACK = 25
# How busy the machine is, is no event of the drill.
OF_LOAD = {"FrostlineSlow", "FrostlineSaturated", "FrostlineQueueIsLong", "FrostlineMissesDeadlines"}
LOG: list[str] = []


def say(text: str) -> None:
    print(text, flush=True)
    LOG.append(text)


def scaled(text: str) -> str:
    """The rules with every time in them a twelfth."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def shorter(match: re.Match) -> str:
        return f"{max(int(match[2]) * seconds[match[3]] // SCALE, 2)}s"

    text = re.sub(r"(for: |keep_firing_for: )(\d+)([smhd])\b", lambda m: m[1] + shorter(m), text)
    return re.sub(r"(\[)(\d+)([smhd])\]", lambda m: "[" + shorter(m) + "]", text)


class Prometheus:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = ROOT / "target/observability"
        subprocess.run([ROOT / "deploy/observability/tools.sh", tools], check=True)
        (folder / "rules.yml").write_text(scaled((ROOT / "deploy/observability/rules.yml").read_text()))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules.yml")],
            "scrape_configs": [
                {"job_name": "frostline", "file_sd_configs": [{"files": [str(folder / "targets.json")], "refresh_interval": "1s"}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.targets([])
        command = [tools / "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                   f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        self.process = subprocess.Popen([str(part) for part in command])

    def targets(self, addresses: list[str]) -> None:
        beside = self.folder / "targets.new"
        beside.write_text(json.dumps([{"targets": addresses}]))
        beside.rename(self.folder / "targets.json")

    def firing(self) -> set[str]:
        """Alerts that fire, each with what its labels tell apart."""
        with urllib.request.urlopen(f"{self.url}/api/v1/alerts", timeout=10) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        found = set()
        for alert in alerts:
            labels = alert["labels"]
            if alert["state"] == "firing" and labels["alertname"] not in OF_LOAD:
                what = [labels[name] for name in ("head", "files", "usage") if name in labels]
                found.add(" ".join([labels["alertname"], *what]))
        return found

    def becomes(self, expected: set[str], event: str, within: float) -> None:
        """Waits until exactly these fire; nothing but these and those that fired before may fire meanwhile."""
        begun, before = time.monotonic(), self.firing()
        while True:
            now = self.firing()
            stray = now - expected - before
            assert not stray, f"{event}: {sorted(stray)} fires as well"
            took = time.monotonic() - begun
            if now == expected:
                say(f"{event}: {', '.join(sorted(expected)) or 'nothing'} after {took:.0f} s")
                return
            assert took < within, f"{event}: {sorted(now)} after {took:.0f} s, not {sorted(expected)}"
            time.sleep(0.5)

    def stays(self, expected: set[str], event: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            now = self.firing()
            assert now == expected, f"{event}: {sorted(now)}, not {sorted(expected)}"
            time.sleep(0.5)
        say(f"{event}: {', '.join(sorted(expected)) or 'nothing'} for {seconds:.0f} s")


class Callers(threading.Thread):
    """Calls of good heads, one after another; one that a server does not answer goes to the other."""

    def __init__(self, addresses: list[str], token: str) -> None:
        super().__init__(daemon=True)
        self.addresses, self.token = addresses, token
        self.answered = self.sent_again = 0
        self.lost: list[str] = []
        self.over = False

    def run(self) -> None:
        types, vision, stubs = protocol("types_pb2"), protocol("vision_pb2"), protocol("vision_pb2_grpc")
        picture = (ROOT / "models/demo/samples/scene-1.jpg").read_bytes()
        image = types.Image(encoded=picture)
        channels = [grpc.insecure_channel(address, CHANNEL) for address in self.addresses]
        services = [stubs.VisionServiceStub(channel) for channel in channels]
        metadata, turn = [("authorization", f"Bearer {self.token}")], 0
        while not self.over:
            turn += 1
            for attempt in range(2):
                service = services[(turn + attempt) % len(services)]
                try:
                    if turn % 3:
                        service.Detect(vision.DetectRequest(image=image), timeout=30, metadata=metadata)
                    else:
                        service.Segment(vision.SegmentRequest(image=image), timeout=30, metadata=metadata)
                    self.answered += 1
                    break
                except grpc.RpcError as error:
                    if attempt or error.code() != grpc.StatusCode.UNAVAILABLE:
                        self.lost.append(f"{error.code().name}: {error.details()}")
                        break
                    self.sent_again += 1
            time.sleep(0.2)

    def check(self, event: str) -> None:
        assert not self.lost, f"{event}: callers lost {self.lost[:3]}"
        say(f"   callers: {self.answered} answered, {self.sent_again} sent again, none lost")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def certificate(folder: Path, held: float, left: float) -> None:
    """A certificate of its own authority that has held for so many days and holds for so many more, put in place with its key."""
    name = f"at-{held}-{left}"
    key, request, made = (folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
    config, index = folder / f"{name}.cnf", folder / f"{name}.txt"
    index.write_text("")
    config.write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={index}\nnew_certs_dir={folder}\nrand_serial=yes\ndefault_md=sha256\npolicy=any\n"
        "x509_extensions=names\n[any]\ncommonName=supplied\n[names]\nsubjectAltName=DNS:localhost\n"
    )
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", request)
    now = datetime.now(UTC)
    start, end = ((now + timedelta(days=days)).strftime("%Y%m%d%H%M%SZ") for days in (-held, left))
    openssl("ca", "-batch", "-config", config, "-selfsign", "-keyfile", key, "-in", request, "-out", made, "-notext",
            "-startdate", start, "-enddate", end)
    made.rename(folder / "tls.pem")
    key.rename(folder / "tls.key")


def token(keys: Path, name: str) -> str:
    made = subprocess.run([binary(), "token", name, "--file", keys], check=True, capture_output=True, text=True, env=environment())
    return made.stdout.strip()


def seconds_of(alert: str) -> float:
    """How long the scaled rule waits, and a server and Prometheus beside it."""
    text = scaled((ROOT / "deploy/observability/rules.yml").read_text())
    rule = text.split(f"alert: {alert}\n")[1].split("- alert:")[0]
    waits = re.search(r"\bfor: (\d+)s", rule)
    return (int(waits[1]) if waits else 0) + SLACK


def drill(folder: Path) -> None:
    models = folder / "models"
    shutil.copytree(ROOT / "models/demo", models, ignore=shutil.ignore_patterns("samples"))
    keys = folder / "keys.toml"
    camera, _, _ = token(keys, "camera"), token(keys, "revoked"), token(keys, "other")
    certificate(folder, 1, 60)
    ports = free_ports(6)
    admins = [f"127.0.0.1:{port}" for port in ports[3:]]

    def server(name: str, index: int, more: dict) -> Replica:
        settings = {"telemetry.admin": admins[index], "engine.lanes": 1, "server.lame_duck_seconds": 2, **more}
        return Replica(name, ports[index], models, settings)

    one, two = (server(name, index, {"auth.keys": keys}) for index, name in enumerate(("one", "two")))
    secure = server("secure", 2, {"tls.cert": folder / "tls.pem", "tls.key": folder / "tls.key"})
    prometheus = Prometheus(folder)
    callers = None
    try:
        for replica in (one, two, secure):
            replica.start()
        prometheus.targets(admins)
        callers = Callers([one.address, two.address], camera)
        callers.start()
        time.sleep(10)
        prometheus.stays(set(), "all is well", 30)

        bad = models / "heads/motion/head.onnx"
        whole = bad.read_bytes()
        bad.write_bytes(whole[: len(whole) // 2])
        prometheus.becomes({"FrostlineHeadDoesNotLoad motion"}, "a head is uploaded in half", seconds_of("FrostlineHeadDoesNotLoad"))
        two.kill()
        two.start()
        prometheus.stays({"FrostlineHeadDoesNotLoad motion"}, "a server starts beside it", 10)
        callers.check("a bad head")
        bad.write_bytes(whole)
        prometheus.becomes(set(), "the rest of it comes", SLACK)

        text = keys.read_text()
        entries = re.split(r"(?m)^(?=\[\[key\]\])", text)
        kept = "".join(entry for entry in entries if '"revoked"' not in entry)
        keys.write_text(kept + '[[key]]\nname = "typo\n')
        prometheus.becomes({"FrostlineFilesNotTaken keys"}, "a key is revoked with a typo beside it", seconds_of("FrostlineFilesNotTaken"))
        callers.check("a revoked key")
        keys.write_text(kept)
        prometheus.becomes(set(), "the typo is mended", SLACK)

        certificate(folder, 90, 10)
        prometheus.becomes({"FrostlineCertificateEnds server"}, "a certificate has 10 of 100 days left", seconds_of("FrostlineCertificateEnds"))
        certificate(folder, 90, -1)
        both = {"FrostlineCertificateEnds server", "FrostlineFilesNotTaken certificates"}
        prometheus.becomes(both, "one that has ended takes its place", seconds_of("FrostlineFilesNotTaken"))
        certificate(folder, 1, 60)
        prometheus.becomes(set(), "a new one comes", SLACK)

        prometheus.targets([admins[0], admins[2]])
        assert two.drain() == 0
        prometheus.stays(set(), "a node is drained", 15)
        callers.check("a drain")
        two.start()
        prometheus.targets(admins)
        prometheus.stays(set(), "its server is back elsewhere", 10)

        # The other one: three restarts in what stands for an hour would be an alert of their own.
        one.kill()
        prometheus.becomes({"FrostlineDown"}, "a server is killed", seconds_of("FrostlineDown"))
        callers.check("a killed server")
        one.start()
        prometheus.becomes(set(), "it is started again", SLACK)

        prometheus.targets([])
        prometheus.becomes({"FrostlineAbsent"}, "every target vanishes", seconds_of("FrostlineAbsent"))
        prometheus.targets(admins)
        prometheus.becomes(set(), "they are back", SLACK)
        callers.check("the end")
    finally:
        if callers:
            callers.over = True
            callers.join(60)
        prometheus.process.terminate()
        prometheus.process.wait(60)
        for replica in (one, two, secure):
            replica.kill()


if __name__ == "__main__":
    say(f"times of the rules are 1/{SCALE} of what they say; {os.cpu_count()} cores")
    code = 0
    with tempfile.TemporaryDirectory(prefix="frostline-drill-") as work:
        try:
            drill(Path(work))
        except AssertionError as error:
            say(f"FAILED {error}")
            code = 1
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text("\n".join(LOG) + "\n")
    sys.exit(code)
