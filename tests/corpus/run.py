"""Decodes the pictures that come with packages and compares each with what Pillow makes of it.

    run.py FOLDER

Fetches the packages of `PACKAGES` into FOLDER (once), decodes every picture in them with `decode.rs` and ends with 1
where one is decoded otherwise than by Pillow, refused without a reason listed in `KNOWN`, takes more memory than the
limits say, or makes the decoder panic. Writes FOLDER/report.txt, one line a file.
"""

import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
from decoder import decode_files  # noqa: E402
from reference import decode  # noqa: E402

KINDS = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"}
# Of each package at most this many files, taken at even distances.
MOST = 800
PACKAGES = {
    # Pillow's own tests: odd and broken files of all formats, the BMP suite among them.
    "pillow": ["pip", "--no-binary=:all:", "pillow==13.0.0"],
    "imageio": ["pip", "--no-binary=:all:", "imageio==2.38.1"],
    "scikit-image": ["pip", "--only-binary=:all:", "scikit-image==0.26.0"],
    "matplotlib": ["pip", "--only-binary=:all:", "matplotlib==3.11.2"],
    "pygame": ["pip", "--only-binary=:all:", "pygame-ce==2.5.8"],
    "mate-backgrounds": ["apt", "mate-backgrounds"],
    "frozen-bubble-data": ["apt", "frozen-bubble-data"],
}
# Beside the encoded file a call may hold this much: rows and coefficients by the pixel, tables and buffers in all.
BYTES_PER_PIXEL = 12
BYTES_IN_ALL = 8 << 20
# Files that Pillow reads and this does not, or the other way round, or otherwise: by the end of their path, with why.
KNOWN = {
    "b/badplanes.bmp": "planes that are not one contradict the format",
    "b/badrle.bmp": "runs past the end of the picture are damage",
    "b/rletopdown.bmp": "run lengths from the top contradict the format",
    "q/pal4rletrns.bmp": "pixels that runs jump over are black, in Pillow of colour 0",
    "q/pal8rletrns.bmp": "pixels that runs jump over are black, in Pillow of colour 0",
    "images/hopper_bad_exif.jpg": "coefficients beyond the range: Pillow differs from itself with and without SIMD",
    "clipboard.dib": "a bitmap without its file header has no signature",
}


def fetch(name: str, how: list[str], folder: Path) -> Path:
    """The package's files, unpacked."""
    files = folder / name
    if (files / ".ready").exists():
        return files
    files.mkdir(parents=True, exist_ok=True)
    packed = folder / "packed" / name
    packed.mkdir(parents=True, exist_ok=True)
    if how[0] == "pip":
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", *how[1:]],
            cwd=packed,
            check=True,
        )
    elif how[0] == "npm":
        subprocess.run(["npm", "pack", "--silent", *how[1:]], cwd=packed, check=True)
    else:
        # A fresh machine has no list of packages yet.
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "download", "-qq", *how[1:]], cwd=packed, check=True)
    for archive in packed.iterdir():
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", archive, files], check=True)
        elif archive.suffix in (".whl", ".zip"):
            zipfile.ZipFile(archive).extractall(files)
        else:
            tarfile.open(archive).extractall(files, filter="data")
    (files / ".ready").touch()
    return files


def pictures(files: Path) -> list[Path]:
    found = sorted(path for path in files.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    return [found[len(found) * i // MOST] for i in range(MOST)] if len(found) > MOST else found


def by_pillow(path: Path) -> np.ndarray | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(decode(path.read_bytes()))
    except Exception:  # Pillow raises what it likes; any of it is a file that it does not read
        return None


def deep(path: Path) -> bool:
    """Samples of which Pillow rounds down to 8 bits and this to the nearest: levels may differ by one."""
    head = path.read_bytes()[:32]
    if len(head) < 32:
        return False
    return (head.startswith(b"\x89PNG") and head[24] == 16) or (head.startswith(b"BM") and head[28] == 16)


def verdict(path: Path, answer: dict) -> tuple[str, str]:
    """What came of a file, and details; `wrong` and `panic` and `hungry` end the run with 1."""
    if answer.get("panic"):
        return "panic", ""
    pixels = answer.get("width", 0) * answer.get("height", 0)
    bound = BYTES_PER_PIXEL * pixels + BYTES_IN_ALL
    if answer["grown"] > bound:
        return "hungry", f"{answer['grown'] >> 20} MB of {bound >> 20}"
    expected = by_pillow(path)
    known = next((why for end, why in KNOWN.items() if str(path).endswith(end)), None)
    if "error" in answer:
        if expected is None:
            return "refused by both", answer["error"]
        return ("known", known) if known else ("wrong", f"refused: {answer['error']}")
    got = answer["pixels"]
    if expected is None:
        return "read by us alone", known or ""
    if got.shape != expected.shape:
        return ("known", known) if known else ("wrong", f"{got.shape} for {expected.shape}")
    far = int(np.abs(got.astype(np.int16) - expected).max(initial=0))
    if far == 0:
        return "equal", ""
    if far == 1 and deep(path):
        return "equal to one level", ""
    wrong = (got != expected).any(axis=2).mean()
    return ("known", known) if known else ("wrong", f"{wrong:.2%} of the pixels by up to {far}")


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = 200_000_000
    total, rows, most = Counter(), [], 0
    for name, how in PACKAGES.items():
        files = pictures(fetch(name, how, folder))
        counts = Counter()
        for path, answer in zip(files, decode_files(files, folder)):
            kind, detail = verdict(path, answer)
            counts[kind] += 1
            most = max(most, answer["grown"])
            rows.append(f"{kind}\t{path.relative_to(folder)}\t{detail}")
        total += counts
        print(f"{name:20} {len(files):5} files: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    (folder / "report.txt").write_text("\n".join(sorted(rows)) + "\n")
    failed = [row for row in rows if row.split("\t")[0] in ("wrong", "panic", "hungry")]
    print(f"{sum(total.values())} files; at most {most >> 20} MB for one; report in {folder / 'report.txt'}")
    print("\n".join(failed))
    return 1 if failed or sum(total.values()) < 500 else 0


if __name__ == "__main__":
    sys.exit(main())
