"""What people hold as an image: each kind gives the answer that the file gives, and what is none is told so."""

import io
import pathlib
import tracemalloc

import grpc
import numpy as np
import pytest
from conftest import SAMPLES
from frostline_client import AsyncClient, Client, FrostlineError, images, pictures
from PIL import Image, ImageOps

SCENE = SAMPLES / "scene-1.jpg"
CLIP = pictures(SAMPLES / "clip-1")
RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def client(server):
    with Client(server) as client:
        yield client


def png(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def sent(value) -> np.ndarray:
    """The raw pixels that a value becomes."""
    raw = images.image(value).raw
    return np.frombuffer(raw.rgb, np.uint8).reshape(raw.height, raw.width, 3)


def file_like(data: bytes):
    class Upload:
        """What web frameworks hand over: `read` and no more."""

        def read(self, size=-1):
            return data

    return Upload()


def test_every_way_to_give_a_file_is_one(client):
    data = SCENE.read_bytes()
    wanted = client.segment(SCENE)
    with open(SCENE, "rb") as opened:
        given = [str(SCENE), data, bytearray(data), memoryview(data), memoryview(bytearray(data * 2))[: len(data)],
                 io.BytesIO(data), opened, file_like(data)]  # fmt: skip
        for one in given:
            assert images.image(one).encoded == data if not hasattr(one, "read") else client.segment(one) == wanted, one
    assert client.segment(bytearray(data)) == wanted
    # Not only ours: every second byte of a buffer is no longer one block.
    spread = bytearray(2 * len(data))
    spread[::2] = data
    assert images.image(memoryview(spread)[::2]).encoded == data


def test_pixels_give_the_answer_that_their_file_gives(client):
    with Image.open(SCENE) as opened:
        picture = opened.convert("RGB")
    array = np.asarray(picture)
    wanted = client.segment(png(picture))
    assert client.segment(picture) == wanted and client.segment(array) == wanted
    # Views of any strides: turned over, every second pixel, columns first, channels of OpenCV's order.
    assert client.segment(array[::-1, ::-1][::-1, ::-1]) == wanted
    assert client.segment(np.asfortranarray(array)) == wanted
    bgr = array[:, :, ::-1].copy()
    assert client.segment(bgr[:, :, ::-1]) == wanted
    small = array[::2, ::3]
    assert client.segment(small) == client.segment(png(Image.fromarray(np.ascontiguousarray(small))))
    read_only = array.copy()
    read_only.flags.writeable = False
    assert client.segment(read_only) == wanted


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "PA", "La", "RGBa"]


@pytest.mark.parametrize("mode", MODES)
def test_pil_images_of_every_mode_go_as_pillow_converts_them(mode):
    colors = Image.fromarray(RNG.integers(0, 256, (16, 24, 3), np.uint8))
    picture = {"LAB": lambda: Image.frombytes("LAB", (24, 16), bytes(range(256)) * 4 + bytes(128)),
               "La": lambda: colors.convert("LA").convert("La"), "RGBa": lambda: colors.convert("RGBA").convert("RGBa"),
               "PA": lambda: colors.convert("P").convert("PA")}.get(mode, lambda: colors.convert(mode))()  # fmt: skip
    assert picture.mode == mode
    try:
        wanted = np.asarray(picture.convert("RGB"))
    except ValueError:
        # Pillow itself has no way from this mode.
        with pytest.raises(ValueError):
            images.image(picture)
        return
    assert (sent(picture) == wanted).all()


def test_transparency_and_16_bits_are_what_the_server_makes_of_the_file(client):
    """Alpha is dropped, and what it hid is there; 16 bits become the nearest of 256 levels."""
    array = np.asarray(Image.open(SCENE).convert("RGBA")).copy()
    array[100:300, 100:300, 3] = 0
    rgba = Image.fromarray(array)
    wanted = client.segment(png(rgba))
    assert client.segment(rgba) == wanted == client.segment(array) == client.segment(array[:, :, :3])
    gray = np.asarray(Image.open(SCENE).convert("L"))
    wanted = client.segment(png(Image.fromarray(gray)))
    assert client.segment(gray) == wanted == client.segment(gray[:, :, None]) == client.segment(Image.fromarray(gray))
    deep = (gray.astype(np.uint16) * 257 + RNG.integers(-128, 129, gray.shape)).clip(0, 65535).astype(np.uint16)
    sixteen = Image.fromarray(deep)
    assert sixteen.mode == "I;16"
    assert client.segment(sixteen) == client.segment(png(sixteen))
    assert (sent(sixteen)[:, :, 0] == np.rint(deep / 257)).all()


def test_a_pil_image_is_its_pixels_and_a_file_is_turned(client):
    """A photo that says how it was held: the file is turned by the server, a PIL image lies as it is held here."""
    with Image.open(SCENE) as opened:
        exif = opened.getexif()
        exif[0x0112] = 6
        file = io.BytesIO()
        opened.save(file, "JPEG", quality=95, exif=exif)
    held = Image.open(io.BytesIO(file.getvalue()))
    assert client.segment(file.getvalue()).size == (640, 480)
    assert client.segment(held).size == (480, 640)
    turned = client.segment(ImageOps.exif_transpose(held))
    assert turned.size == (640, 480)
    # Drawn, both are upright.
    assert client.segment(file.getvalue()).draw().size == (480, 640)


def test_arrays_of_other_libraries_are_taken():
    class Borrowed:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    array = RNG.integers(0, 256, (4, 5, 3), np.uint8)
    assert (sent(Borrowed(array)) == array).all()
    with pytest.raises(TypeError, match="float32"):
        images.image(Borrowed(array.astype(np.float32)))


def test_pixels_are_copied_once():
    """Into the message; a view of odd strides is not made whole first."""
    def peak(pixels):
        tracemalloc.start()
        images.image(pixels)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    array = np.zeros((1000, 2000, 4), np.uint8)
    least = peak(np.zeros((1000, 2000, 3), np.uint8))
    # Python's bytes, and the message's own.
    assert 6_000_000 <= least < 12_100_000
    for view in (array[:, :, :3], array[::-1, :, 2::-1], array[:, :, 0]):
        assert peak(view) < 1.05 * least


UINT8 = lambda *shape: np.zeros(shape, np.uint8)  # noqa: E731


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, r"uint8, not float32 \[4, 4, 3\]; scale"),
        (np.zeros((4, 4, 3), np.float64), TypeError, "255"),
        (np.zeros((4, 4, 3), np.uint16), TypeError, "uint8, not uint16"),
        (np.zeros((4, 4), bool), TypeError, "uint8, not bool"),
        (np.array(["a.jpg"]), TypeError, "uint8"),
        (UINT8(3, 40, 50), ValueError, r"\[3, 40, 50\].*channels come last"),
        (UINT8(40, 50, 2), ValueError, r"not \[40, 50, 2\]"),
        (UINT8(1, 40, 50, 3), ValueError, "for a clip give frames"),
        (UINT8(40), ValueError, r"\[height, width\]"),
        (UINT8(0, 50, 3), ValueError, "no pixels"),
        (b"", ValueError, "no bytes"),
        (io.BytesIO(), ValueError, r"seek\(0\)"),
        (io.StringIO("text"), TypeError, "'rb'"),
        (None, TypeError, "not None"),
        (7, TypeError, "not int"),
        (["a.jpg", "b.jpg"], TypeError, "for a clip give frames"),
        (SAMPLES, ValueError, "is a folder"),
        (str(SAMPLES), ValueError, "is a folder"),
        ("nothing.jpg", FileNotFoundError, "nothing.jpg"),
        ("https://example.org/a.jpg", ValueError, "not fetched"),
        ("data:image/png;base64,AAAA", ValueError, "given as bytes"),
        ("A" * 5000, ValueError, "base64"),
        (memoryview(UINT8(4, 4)), ValueError, "memoryview"),
        (Image.new("F", (4, 4)), ValueError, "mode F"),
        (Image.new("I", (4, 4)), ValueError, "mode I"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, (str, bytes)) else type(value).__name__,
)
def test_what_is_no_image_is_told_so(value, error, says):
    with pytest.raises(error, match=says):
        images.image(value)


@pytest.mark.parametrize(
    ("frames", "error", "says"),
    [
        ("clip.mp4", TypeError, "one path"),
        (str(SAMPLES / "clip-1"), TypeError, r"a folder; .*pictures\("),
        (SAMPLES / "clip-1", TypeError, "a folder"),
        (b"bytes", TypeError, "one file"),
        (io.BytesIO(b"x"), TypeError, "one file"),
        (UINT8(40, 50, 3), ValueError, r"\[frames, height, width, channels\]"),
        (Image.new("RGB", (4, 4)), TypeError, "not one Image"),
        ([], ValueError, "at least one frame"),
        ([b"x", 7], TypeError, r"frames\[1\]: an image is"),
        (7, TypeError, "not one int"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, (str, bytes)) else type(value).__name__,
)
async def test_what_is_no_clip_is_told_so(client, server, frames, error, says):
    with pytest.raises(error, match=says):
        client.recognize(frames)
    async with AsyncClient(server) as other:
        with pytest.raises(error, match=says):
            await other.analyze(frames=frames)


def test_a_clip_may_be_anything_that_an_image_may(client):
    opened = [Image.open(path).convert("RGB") for path in CLIP]
    arrays = np.stack([np.asarray(picture) for picture in opened])
    wanted = client.recognize([png(picture) for picture in opened])
    assert client.recognize(opened) == wanted
    assert client.recognize(arrays) == wanted
    assert client.recognize(list(arrays)) == wanted
    assert client.recognize(picture for picture in opened) == wanted
    by_files = client.recognize(CLIP)
    assert client.recognize(iter(map(str, CLIP))) == by_files
    assert client.recognize([io.BytesIO(path.read_bytes()) for path in CLIP]) == by_files
    assert client.recognize([bytearray(path.read_bytes()) for path in CLIP]) == by_files


def test_folders_list_their_pictures_as_people_count(tmp_path):
    for name in ("10.jpg", "2.JPG", "1.png", "b/3.webp", ".hidden.jpg", "notes.txt", "a2.gif", ".thumbs/1.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.name for path in pictures(tmp_path)] == ["1.png", "2.JPG", "10.jpg", "a2.gif"]
    assert [path.name for path in pictures(tmp_path, recursive=True)][-1] == "3.webp"
    with pytest.raises(NotADirectoryError):
        pictures(tmp_path / "1.png")


def test_what_is_too_large_raw_is_refused_with_the_limit(client):
    with pytest.raises(FrostlineError, match="67108864 bytes") as refused:
        client.detect(Image.new("RGB", (6000, 4000)))
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.reason == "LIMIT_EXCEEDED"
    assert isinstance(SCENE, pathlib.Path) and len(client.detect(SCENE)) > 0
