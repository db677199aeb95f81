"""A server with TLS and tokens: this package's clients, the command line, and the field's tools."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc_tools
import pytest
from conftest import BINARY, ROOT, SAMPLES, Server
from frostline_client import AsyncClient, Client, FrostlineError, RetryPolicy
from grpc_tools import protoc

SCENE = SAMPLES / "scene-1.jpg"
TOOLS = ROOT / "target/tools"
ONCE = RetryPolicy(attempts=1)


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass
class Authority:
    """A certificate authority in a folder."""

    folder: Path

    def __post_init__(self):
        self.folder.mkdir()
        self.cert, self.key = self.folder / "ca.pem", self.folder / "ca.key"
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2),
            *("-subj", "/CN=test authority", "-keyout", self.key, "-out", self.cert),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )

    def issue(self, name: str, names: str) -> tuple[Path, Path]:
        """A certificate with the alternative names `names`, and its key."""
        cert, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        extensions = self.folder / "extensions"
        extensions.write_text(f"subjectAltName={names}\nbasicConstraints=CA:false\n")
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key, "-days", 2),
            *("-extfile", extensions, "-out", cert),
        )
        return cert, key


@dataclass
class Secure:
    """A server with TLS and tokens, and what opens it."""

    address: str
    admin: str
    ca: Path
    token: str
    narrow: str
    camera: tuple[Path, Path]
    folder: Path


def frostline(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
    return subprocess.run(
        [BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=environment | variables
    )


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    servers, clients = Authority(folder / "servers"), Authority(folder / "clients")
    cert, key = servers.issue("localhost", "DNS:localhost,IP:127.0.0.1")
    keys = folder / "keys.toml"
    made = [frostline("token", "tests", "--file", keys), frostline("token", "narrow", "--file", keys, "--heads", "scene")]
    assert all(one.returncode == 0 for one in made), made
    (folder / "token").write_text(made[0].stdout)
    settings = {
        "tls.cert": cert, "tls.key": key, "tls.client_ca": clients.cert, "tls.client_optional": "true",
        "auth.keys": keys, "auth.certificates": "true", "auth.heads": '["*"]',
    }  # fmt: skip
    running = Server(*(argument for path, value in settings.items() for argument in ("--set", f"{path}={value}")))
    tokens = [one.stdout.strip() for one in made]
    yield Secure(running.address, running.admin, servers.cert, *tokens, clients.issue("camera", "DNS:camera.example"), folder)
    assert running.stop() == 0, "the server did not drain"


def test_a_token_opens_the_blocking_client(secure):
    with Client(secure.address, ca=secure.ca, token=secure.token) as client:
        assert client.healthy() and client.healthy("frostline.head.objects")
        assert len(client.detect(SCENE)) > 0
        assert {head.name for head in client.heads()} == {"objects", "scene", "motion"}
    with Client(secure.address, ca=secure.ca, token=secure.narrow) as client:
        assert [head.name for head in client.heads()] == ["scene"]
        client.segment(SCENE, "scene")
        with pytest.raises(FrostlineError) as refused:
            client.detect(SCENE, "objects")
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_a_token_opens_the_asyncio_client(secure):
    async with AsyncClient(secure.address, ca=secure.ca, token=secure.token) as client:
        assert await client.healthy()
        assert len(await client.detect(SCENE)) > 0
    async with AsyncClient(secure.address, ca=secure.ca, token="frl_wrong") as client:
        with pytest.raises(FrostlineError) as refused:
            await client.detect(SCENE)
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


def test_without_a_token_only_health_is_open(secure):
    with Client(secure.address, ca=secure.ca) as client:
        assert client.healthy() and not client.healthy("frostline.head.objects")
        with pytest.raises(FrostlineError) as refused:
            client.heads()
    assert refused.value.code == grpc.StatusCode.UNAUTHENTICATED


def test_a_certificate_opens_both_clients(secure):
    cert, key = secure.camera
    with Client(secure.address, ca=secure.ca, cert=cert, key=key) as client:
        assert len(client.detect(SCENE)) > 0


async def test_a_certificate_opens_the_asyncio_client(secure):
    cert, key = secure.camera
    async with AsyncClient(secure.address, ca=secure.ca, cert=cert, key=key) as client:
        assert len(await client.detect(SCENE)) > 0


def test_nobody_else_is_taken_for_the_server(secure):
    """Another authority's word, plain text, and a name that the certificate has not."""
    stranger = Authority(secure.folder / "stranger").cert
    for options in ({"ca": stranger}, {}):
        with Client(secure.address, token=None, retry=ONCE, timeout=10, **options) as client:
            with pytest.raises(FrostlineError) as failed:
                client.heads()
        assert failed.value.code == grpc.StatusCode.UNAVAILABLE


def test_lists_of_addresses_and_names_over_tls(secure):
    """The certificate is of localhost and 127.0.0.1; a list goes by its first address, or by the name that is given."""
    one = secure.address
    fine = [(f"ipv4:{one},{one}", {}), ([one], {}), (f"https://{one}", {}), (f"dns:///{one}", {}), ([one, one], {"authority": "localhost"})]
    for address, options in fine:
        with Client(address, ca=secure.ca, token=f"{secure.token}\n", **options) as client:
            assert len(client.heads()) == 3 and client.healthy(), address
    with Client([one], ca=secure.ca, token=secure.token, authority="elsewhere.example", retry=ONCE) as client:
        with pytest.raises(FrostlineError) as failed:
            client.heads(timeout=10.0)
    assert failed.value.code == grpc.StatusCode.UNAVAILABLE


def test_a_call_may_bring_its_own_token(secure):
    with Client(secure.address, ca=secure.ca, token=secure.narrow) as client:
        mine = {"Authorization": f"Bearer {secure.token}"}
        assert len(client.heads(metadata=mine)) == 3 and len(client.heads()) == 1
        with pytest.raises(FrostlineError) as refused:
            client.detect(SCENE, "objects", metadata={"x-request-id": "tls-1"})
    assert refused.value.request_id == "tls-1"


def test_the_command_line_asks_over_tls(secure):
    url = f"https://{secure.address}"
    told = frostline("health", "--addr", url, "--ca", secure.ca)
    assert (told.returncode, told.stdout) == (0, "the server serves\n"), told.stderr
    head = frostline("health", "--addr", url, "--ca", secure.ca, "frostline.head.objects", FROSTLINE_TOKEN=secure.token)
    assert head.returncode == 0, head.stderr
    # As a container's health check asks: where the configuration says that the server listens, or its admin port.
    variables = {"FROSTLINE_SERVER_LISTEN": secure.address}
    variables |= {"FROSTLINE_TLS_CERT": "/none", "FROSTLINE_TLS_KEY": "/none"}
    own = frostline("health", "--ca", secure.ca, **variables)
    assert own.returncode == 0, own.stderr
    own = frostline("health", **variables)
    assert own.returncode == 3 and "certificate" in own.stderr, own.stderr
    own = frostline("health", FROSTLINE_TELEMETRY_ADMIN=secure.admin, **variables)
    assert (own.returncode, own.stdout) == (0, "the server serves\n"), own.stderr
    gone = frostline("health", FROSTLINE_TELEMETRY_ADMIN="127.0.0.1:1", **variables)
    assert gone.returncode == 3 and "admin port" in gone.stderr, gone.stderr
    untrusted = frostline("health", "--addr", url)
    assert untrusted.returncode == 3 and "certificate" in untrusted.stderr, untrusted.stderr


MISSING = [name for name in ("grpcurl", "ghz", "grpc-health-probe") if not (TOOLS / name).exists()]


@pytest.mark.skipif(bool(MISSING), reason=f"make examples-test builds {', '.join(MISSING)}; minutes")
def test_tools(secure):
    protoset = secure.folder / "frostline.protoset"
    files = sorted((ROOT / "proto").rglob("*.proto"))
    flags = [f"-I{ROOT / 'proto'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}", "--include_imports", f"--descriptor_set_out={protoset}"]
    assert protoc.main(["protoc", *flags, *map(str, files)]) == 0
    command = [ROOT / "deploy/clients/tools.sh", secure.address, secure.ca, secure.folder / "token", protoset, SCENE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(part.split("\n", 1) for part in done.stdout.removeprefix("# ").split("\n# "))
    services = said["grpcurl, reflection"]
    assert "frostline.v1.VisionService" in services and "inference.GRPCInferenceService" in services
    assert "grpc.reflection.v1.ServerReflection" in services
    found = [line for line in services.splitlines() if '"label"' in line]
    assert found and found == said["grpcurl, protoset"].splitlines()
    assert "Unauthenticated" in said["grpcurl, no token"]
    for descriptors in ("reflection", "protoset"):
        assert said[f"ghz, {descriptors}"].strip() == 'calls 64 codes {"OK": 64}', done.stdout
    probes = [text for name, text in said.items() if name.startswith("grpc-health-probe")]
    assert len(probes) == 3 and all("status: SERVING" in text for text in probes), done.stdout
