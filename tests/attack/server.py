"""A server process under watch: started with keys, held below a cap on memory, and asked how it is."""

import contextlib
import hashlib
import json
import os
import re
import resource
import secrets
import subprocess
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 180
# Whom the harness knows: a good caller, an attacker with a key, and one that may use one head alone.
IDENTITIES = {"good": "", "evil": "", "narrow": 'heads = ["objects"]\n'}


def environment() -> dict[str, str]:
    """This process's variables without settings of the server, and with the runtime library that the Makefile fetched."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
    kept.setdefault("ORT_DYLIB_PATH", str(ROOT / "target/onnxruntime/libonnxruntime.so"))
    return kept


class ControlGroup:
    """A control group that bounds memory, where this process may make one."""

    def __init__(self, folder: Path, limit: str) -> None:
        self.folder = folder
        folder.mkdir()
        try:
            (folder / limit).read_text()
        except OSError:
            folder.rmdir()
            raise
        self.limit = folder / limit

    @classmethod
    def make(cls, most: int) -> "ControlGroup | None":
        """One of `most` bytes, in version 2 or 1; none where that is not allowed."""
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        name = f"frostline-attack-{os.getpid()}-{time.monotonic_ns()}"
        root = Path("/sys/fs/cgroup")
        for folder, limit in (
            (root / own.get("", "/").lstrip("/") / name, "memory.max"),
            (root / "memory" / own.get("memory", "/").lstrip("/") / name, "memory.limit_in_bytes"),
            (root / "memory" / name, "memory.limit_in_bytes"),
        ):
            group = None
            with contextlib.suppress(OSError):
                group = cls(folder, limit)
                group.limit.write_text(str(most))
                return group
            if group:
                group.remove()
        return None

    def add(self, pid: int) -> bool:
        try:
            (self.folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Once its processes are gone."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)


@dataclass
class State:
    """What a server holds at a moment."""

    resident: int
    descriptors: int
    threads: int
    calls: float
    images: float
    series: int

    def __str__(self) -> str:
        parts = f"{self.resident >> 20} MiB, {self.descriptors} descriptors, {self.threads} threads"
        return f"{parts}, {self.calls:.0f} calls, {self.images:.0f} images, {self.series} series"


@dataclass
class Options:
    """How a server is started."""

    settings: dict[str, object] = field(default_factory=dict)
    tls: bool = False
    # Bytes of address space that it gets once it is up; none for no limit.
    address_space: int | None = None
    # More entries for the key file.
    keys: str = ""


class Server:
    """One process. Its memory is watched all the time: over `cap` it is killed."""

    def __init__(self, binary: Path, options: Options, cap: int) -> None:
        self.binary, self.options, self.cap = binary, options, cap
        self.folder = Path(tempfile.mkdtemp(prefix="frostline-attack-"))
        self.tokens = {name: f"frl_{secrets.token_hex(32)}" for name in IDENTITIES}
        self.certificate = self._certificate() if options.tls else None
        self.lines: list[str] = []
        self.killed = False
        self.most_resident = 0
        # The group is what stands when the watchdog is too slow; it also counts what the kernel keeps of files.
        self.group = ControlGroup.make(cap + (512 << 20))
        self.process = self._start()
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()
        try:
            self.address, self.admin = self._ready()
        except BaseException:
            self.stop()
            raise
        if options.address_space:
            resource.prlimit(self.process.pid, resource.RLIMIT_AS, (options.address_space,) * 2)

    # --- start and end ---

    def _certificate(self) -> Path:
        key, cert = self.folder / "tls.key", self.folder / "tls.crt"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        # An authority's would not do for a server.
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
        return cert

    def stated(self) -> int | None:
        """The most memory that it says it takes with these settings, bytes; none if it does not say."""
        command = [str(self.binary), "config"]
        for path, value in self.options.settings.items():
            command += ["--set", f"{path}={value}"]
        told = subprocess.run(command, capture_output=True, text=True, env=environment()).stdout
        found = re.search(r"^\s*([\d.]+)\s+in all\b", told, re.MULTILINE)
        return round(float(found[1]) * (1 << 20)) if found else None

    def _start(self) -> subprocess.Popen[str]:
        entries = "".join(
            f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(self.tokens[name].encode()).hexdigest()}"\n{grant}'
            for name, grant in IDENTITIES.items()
        )
        keys = self.folder / "keys.toml"
        keys.write_text(entries + self.options.keys)
        command = [str(self.binary), "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        all_settings = {"telemetry.format": "json", "auth.keys": keys, **self.options.settings}
        if self.certificate:
            all_settings |= {"tls.cert": self.certificate, "tls.key": self.folder / "tls.key"}
        for path, value in all_settings.items():
            command += ["--set", f"{path}={value}"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
        if self.group and not self.group.add(process.pid):
            self.group.remove()
            self.group = None
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stderr:
            self.lines.append(line)
        process.stderr.close()

    def _watch(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            resident = self._status("VmRSS")
            self.most_resident = max(self.most_resident, resident)
            if resident > self.cap:
                self.killed = True
                process.kill()
            time.sleep(0.05)

    def _ready(self) -> tuple[tuple[str, int], tuple[str, int]]:
        until, admin = time.monotonic() + START_SECONDS, None
        seen = 0
        while time.monotonic() < until and self.process.poll() is None:
            for line in self.lines[seen:]:
                seen += 1
                entry = json.loads(line) if line.startswith("{") else {}
                host, _, port = str(entry.get("address", "")).rpartition(":")
                if "admin port" in str(entry.get("message")):
                    admin = (host, int(port))
                elif entry.get("message") == "ready" and admin:
                    return (host, int(port)), admin
            time.sleep(0.02)
        raise RuntimeError(f"the server did not start: {self.lines[-5:]}")

    def stop(self) -> None:
        """Kills it, and leaves nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.group:
            self.group.remove()
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()

    def alive(self) -> bool:
        return self.process.poll() is None

    # --- how it is ---

    def _status(self, name: str) -> int:
        """A line of /proc/PID/status, in bytes if it is memory; 0 once the process is gone."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if found := re.search(rf"^{name}:\s+(\d+)( kB)?", status, re.MULTILINE):
                return int(found[1]) << (10 if found[2] else 0)
        return 0

    def forget_peak(self) -> None:
        """From now on a new peak of memory counts."""
        self.most_resident = 0
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
            self.exact = True
            return
        self.exact = False

    def peak(self) -> int:
        """The most resident memory since then, bytes: by the kernel's mark, or, where it cannot be reset, as it was seen."""
        return max(self.most_resident, self._status("VmHWM") if self.exact else 0)

    def cpu(self) -> float:
        """Processor seconds so far."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / TICKS

    def scrape(self) -> dict[str, float]:
        """The metrics, each with its labels; nothing if they do not come."""
        try:
            with urllib.request.urlopen(f"http://{self.admin[0]}:{self.admin[1]}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def state(self) -> State:
        metrics = self.scrape()
        try:
            descriptors = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        except OSError:
            descriptors = 0
        return State(
            resident=self._status("VmRSS"),
            descriptors=descriptors,
            threads=self._status("Threads"),
            calls=metrics.get("frostline_calls_in_flight", float("inf")),
            images=metrics.get("frostline_images_in_flight", float("inf")),
            series=len(metrics),
        )
