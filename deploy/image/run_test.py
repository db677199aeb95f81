"""Runs an unpacked image with runc, as a careful platform would, and checks what it promises.

Called by deploy/image-test.sh, with the image's root file system and `buildah inspect` output.
"""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOTFS = Path(os.environ["IMAGE_ROOTFS"])
INSPECT = json.loads(Path(os.environ["IMAGE_INSPECT"]).read_text())
TARGET = os.environ["IMAGE_TARGET"]
RUNC = ["runc", "--root", os.environ["IMAGE_RUNC"]]
NAME = "frostline-image-test"
DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
CONFIG = INSPECT["Docker"]["config"]
UNCHECKED = []


def check(what: str, holds: bool, detail: object = "") -> None:
    """Prints one line; ends the test at the first that does not hold."""
    print(f"{'ok  ' if holds else 'FAIL'} {what}{f': {detail}' if detail != '' else ''}", flush=True)
    if not holds:
        sys.exit(1)


def bundle(arguments: list[str], variables: dict[str, str], mounts: dict[Path, str]) -> Path:
    """An OCI bundle: read-only root, the image's user, no capabilities, the host's network."""
    folder = Path(tempfile.mkdtemp(prefix="frostline-bundle-"))
    user = [int(part) for part in CONFIG["User"].split(":")]
    env = dict(pair.split("=", 1) for pair in CONFIG["Env"]) | variables
    none = {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")}
    spec = {
        "ociVersion": "1.0.2",
        "root": {"path": str(ROOTFS), "readonly": True},
        "process": {
            "user": {"uid": user[0], "gid": user[1]},
            "args": CONFIG["Entrypoint"] + arguments,
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": CONFIG.get("WorkingDir") or "/",
            "capabilities": none,
            "noNewPrivileges": True,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            *(
                {"destination": inside, "type": "bind", "source": str(outside), "options": ["bind", "ro"]}
                for outside, inside in mounts.items()
            ),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts")]},
    }
    (folder / "config.json").write_text(json.dumps(spec))
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def inside(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the binary, in the running container."""
    command = [*RUNC, "exec", NAME, *CONFIG["Entrypoint"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class Container:
    """The server in a container, from start to SIGTERM."""

    def __init__(self, variables: dict[str, str], mounts: dict[Path, str]) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        variables = {"FROSTLINE_SERVER_LISTEN": f"127.0.0.1:{self.port}"} | variables
        self.folder = bundle(CONFIG["Cmd"], variables, mounts)
        self.log = (self.folder / "log").open("w+")
        started = time.monotonic()
        command = [*RUNC, "run", "--bundle", str(self.folder), NAME]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        while not self.accepts():
            if self.process.poll() is not None or time.monotonic() > started + 120:
                self.log.seek(0)
                check("the server starts", False, self.log.read()[-2000:])
            time.sleep(0.01)
        self.start_seconds = time.monotonic() - started

    def accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def pid(self) -> int:
        state = subprocess.run([*RUNC, "state", NAME], capture_output=True, text=True, check=True)
        return json.loads(state.stdout)["pid"]

    def stop(self) -> tuple[int, float]:
        started = time.monotonic()
        subprocess.run([*RUNC, "kill", NAME, "TERM"], check=True)
        code = self.process.wait(60)
        self.log.close()
        shutil.rmtree(self.folder)
        return code, time.monotonic() - started


def check_configuration() -> None:
    labels = CONFIG.get("Labels") or {}
    wanted = ("title", "description", "licenses", "version", "revision", "created", "base.name")
    missing = [name for name in wanted if not labels.get(f"org.opencontainers.image.{name}")]
    check("OCI labels", not missing, missing or labels["org.opencontainers.image.version"])
    check("user is not root", CONFIG["User"].split(":")[0] not in ("", "0", "root"), CONFIG["User"])
    health = CONFIG.get("Healthcheck") or INSPECT["Docker"].get("healthcheck") or {}
    check("health check", health.get("Test", [])[2:3] == ["health"], health.get("Test"))
    check("stops on SIGTERM", CONFIG.get("StopSignal", "SIGTERM") == "SIGTERM")
    check("ports", set(CONFIG["ExposedPorts"]) == {"8461/tcp", "8462/tcp"}, sorted(CONFIG["ExposedPorts"]))


def check_files() -> None:
    files = [path for path in ROOTFS.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    with tempfile.TemporaryFile() as packed:
        if TARGET == "cpu":
            with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
                tar.add(ROOTFS, arcname="/")
            print(f"     size: {size / 1e6:.1f} MB in {len(files)} files, {packed.tell() / 1e6:.1f} MB packed")
        else:
            print(f"     size: {size / 1e6:.1f} MB in {len(files)} files")
    shells = [name for name in ("sh", "bash", "dash", "busybox") if list(ROOTFS.glob(f"**/bin/{name}"))]
    check("no shell inside", not shells, shells)
    special = [str(p) for p in files if p.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
    check("no setuid or setgid file", not special, special)
    loose = [str(p) for p in files if p.stat().st_mode & stat.S_IWOTH]
    check("no file that anyone may write", not loose, loose)


def check_licences() -> None:
    """The texts of what the image carries: its own, the crates', ONNX Runtime's, and those of Debian's libraries."""
    folder = ROOTFS / "opt/frostline/licences"
    there = {path.name: path.stat().st_size for path in folder.glob("*")}
    wanted = {"LICENSE", "THIRD_PARTY.txt", "onnxruntime-LICENSE", "onnxruntime-ThirdPartyNotices.txt", "debian-libc6.txt",
              "debian-ca-certificates.txt"}
    wanted |= {"openvino-third-party-programs.txt"} if TARGET == "openvino" else set()
    check("licence texts", not wanted - there.keys() and all(there.values()), sorted(wanted - there.keys()) or f"{len(there)} files")


def check_refusal() -> None:
    """The image listens on every address: without TLS, authorization or a word, it must not start."""
    folder = bundle(CONFIG["Cmd"], {}, {})
    result = subprocess.run(
        [*RUNC, "run", "--bundle", str(folder), NAME], capture_output=True, text=True, timeout=60
    )
    shutil.rmtree(folder)
    refused = result.returncode != 0 and "server.listen" in result.stderr
    check("refuses to be reachable without TLS or authorization", refused, result.stderr.strip()[:160])


def check_libraries() -> None:
    """Every library finds what it loads; the driver is the host's."""
    result = subprocess.run(
        ["chroot", str(ROOTFS), "/lib64/ld-linux-x86-64.so.2", "--library-path", "/opt/frostline/lib", "--list",
         "/opt/frostline/lib/libonnxruntime_providers_cuda.so"],
        capture_output=True, text=True,
    )
    missing = [line.split()[0] for line in result.stdout.splitlines() if "not found" in line]
    if "cannot open shared object file" in result.stderr:
        missing.append(result.stderr.strip())
    check("the CUDA provider's libraries", all("libcuda.so.1" in name for name in missing), missing or "all found")


def check_serving() -> None:
    samples = {DEMO / "samples": "/samples"}
    container = Container({}, samples)
    print(f"     start: {container.start_seconds:.2f} s from runc to an open port")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{container.pid()}/status").read_text().splitlines() if ":\t" in line
    )
    check("runs as the image's user", status["Uid"].split()[0] == CONFIG["User"].split(":")[0], status["Uid"].split()[0])
    check("has no capability", int(status["CapEff"], 16) == 0 and int(status["CapBnd"], 16) == 0)
    check("cannot gain privileges", status["NoNewPrivs"].strip() == "1")
    mounts = Path(f"/proc/{container.pid()}/mountinfo").read_text().splitlines()
    slash = [line.split() for line in mounts if line.split()[4] == "/"]
    check("root file system is read-only", all("ro" in fields[5].split(",") for fields in slash))
    print(f"     memory: {int(status['VmRSS'].split()[0]) // 1024} MiB resident after start")
    heads = inside("heads", "--addr", container.address)
    check("lists its heads", heads.returncode == 0 and "objects" in heads.stdout, heads.stderr.strip()[:300])
    analyzed = inside("analyze", "--addr", container.address, "/samples/scene-1.jpg")
    check("analyzes a picture", analyzed.returncode == 0 and analyzed.stdout.strip() != "", analyzed.stderr.strip()[:300])
    if " health " in inside("help").stdout.replace("\n", " "):
        healthy = inside("health", "--addr", container.address)
        check("health check says healthy", healthy.returncode == 0, healthy.stderr.strip()[:300])
        nobody = inside("health", "--addr", f"http://127.0.0.1:{free_port()}")
        check("health check fails where nobody listens", nobody.returncode != 0)
    else:
        UNCHECKED.append("the health check: this binary has no `health` command")
    code, seconds = container.stop()
    check("ends cleanly on SIGTERM", code == 0, f"exit {code} after {seconds:.2f} s")

    repository = Container({"FROSTLINE_REPOSITORY_PATH": "/models"}, {DEMO: "/models"})
    heads = inside("heads", "--addr", repository.address)
    check("serves a mounted model repository", heads.returncode == 0 and "objects" in heads.stdout)
    check("ends cleanly again", repository.stop()[0] == 0)


def main() -> None:
    signal.alarm(300)
    check_configuration()
    check_files()
    check_licences()
    check_refusal()
    if TARGET == "gpu":
        check_libraries()
        UNCHECKED.append("serving on a GPU: needs a machine with one and its driver in the container")
    check_serving()
    for line in UNCHECKED:
        print(f"NOT CHECKED {line}")
    print(f"image-test {TARGET}: all checks that ran hold, {len(UNCHECKED)} not checked")


main()
