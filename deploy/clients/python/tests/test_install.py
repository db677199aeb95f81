"""What the package needs: importing and calling it works with grpcio and protobuf alone."""

import importlib.metadata
import re
import subprocess
import sys

from conftest import SAMPLES

WITHOUT = """
import sys

class Missing:
    # As if they were not installed.
    names = {"numpy", "PIL", "pandas", "pycocotools", "supervision", "tqdm", "IPython"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
from frostline_client import Client, FrostlineError
with Client(sys.argv[1]) as client:
    found = client.detect(sys.argv[2])
    print([one.label for one in found], found[0].mask.area, found, found.to_coco()[0]["area"])
    print(found._repr_html_()[:20], found._repr_png_())
    answer, = client.map([open(sys.argv[2], "rb")])
    print(answer.segmentation().segments[0].label, list(client.features(sys.argv[2]).raw))
    for use in (found.boxes, found.draw, found.to_pandas, found.to_supervision, found[0].mask.array,
                lambda: client.segment(sys.argv[2]).label_map, lambda: client.features(sys.argv[2]).maps,
                lambda: list(client.map([], progress=True))):
        try:
            use()
        except ImportError as error:
            print("missing:", error)
"""


def test_the_core_needs_no_more_than_grpcio_and_protobuf(server):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, server, SAMPLES / "scene-1.jpg"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "football" in done.stdout and "<p>objects: 4 found" in done.stdout
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing:")]
    extras = [re.search(r"pip install [a-z]+, .* extra \[(\w+)\]", line)[1] for line in missing]
    assert extras == ["images", "images", "pandas", "images", "images", "images", "images", "progress"], done.stdout


def test_what_it_requires_is_what_it_says():
    """Nothing beside gRPC's and protobuf's own packages, and these need nothing else."""

    def required(package):
        found = set()
        for line in importlib.metadata.requires(package) or ():
            if "extra ==" not in line:
                found.add(re.split(r"[^\w.-]", line)[0].lower())
        return found

    core = {"googleapis-common-protos", "grpcio", "grpcio-health-checking", "protobuf"}
    assert required("frostline-client") == core
    for package in core:
        assert required(package) - core <= {"typing-extensions"}, package
    extras = importlib.metadata.metadata("frostline-client").get_all("Provides-Extra")
    assert {"images", "pandas", "supervision", "progress", "all"} <= set(extras)
