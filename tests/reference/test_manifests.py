"""The JSON Schemas of the manifests and the server agree on what a manifest may hold."""

import copy
import hashlib
import json
import subprocess
import tomllib

import jsonschema
import pytest
from conftest import BINARY, ROOT

# No graph at all: it is looked at once the manifests are found good.
GRAPH = b""
HASH = hashlib.sha256(GRAPH).hexdigest()
HEADS = ("objects", "scene", "motion")
FILES = ("backbone.toml", *(f"heads/{name}/head.toml" for name in HEADS))


def schema_of(file: str) -> dict:
    name = "backbone" if file == "backbone.toml" else "head"
    schema = json.loads((ROOT / f"models/schema/{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def manifests() -> dict[str, dict]:
    said = {file: tomllib.loads((ROOT / "models/demo" / file).read_text()) for file in FILES}
    for manifest in said.values():
        manifest["sha256"] = HASH
        if "backbone" in manifest:
            manifest["backbone"] = HASH
    return said


def toml(table: dict) -> str:
    """Enough of TOML for manifests: JSON's strings, numbers and lists are TOML's too."""

    def value(item) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in item.items()) + " }"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item, ensure_ascii=False)

    return "".join(f"{json.dumps(key)} = {value(item)}\n" for key, item in table.items())


def server_accepts(root, changed: dict[str, dict]) -> tuple[bool, str]:
    for file, manifest in changed.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(toml(manifest))
        (path.parent / manifest_file(manifest)).write_bytes(GRAPH)
    done = subprocess.run([BINARY, "check", str(root)], capture_output=True, text=True)
    # Without graphs nothing serves: it is either a manifest or the backbone's graph that is refused.
    assert done.returncode == 4, done.stderr
    return "No graph was found" in done.stderr, done.stderr


def manifest_file(manifest: dict) -> str:
    name = manifest.get("file")
    plain = isinstance(name, str) and name and name[0] != "." and not set(name) & {"/", "\\", "\0"}
    return name if plain else "unused"


def leaves(schema: dict, path: tuple = ()):
    """Every key that the schema knows, with what it says of it."""
    for key, about in schema.get("properties", {}).items():
        yield (*path, key), about
        yield from leaves(about, (*path, key))
        if "properties" in about.get("items", {}):
            yield from leaves(about["items"], (*path, key, 0))


def with_value(manifest: dict, path: tuple, value) -> dict | None:
    """A copy with another value; nothing where the table is not there. `None` takes the key away."""
    changed = copy.deepcopy(manifest)
    table = changed
    for step in path[:-1]:
        if isinstance(step, str) and step not in table:
            table[step] = {}
        table = table[step]
    if value is None:
        table.pop(path[-1], None)
    else:
        table[path[-1]] = value
    return changed


def values(about: dict):
    """What is tried as the value of a key: what is allowed, what just is not, and other types."""
    yield None
    if "minimum" in about or "maximum" in about:
        least, most = about.get("minimum", 0), about.get("maximum", 1 << 20)
        step = 1 if about["type"] == "integer" else 0.125
        yield from (least, most, least - step, most + step)
    if about.get("type") in ("integer", "number"):
        yield from ("1", True, [1])
        if about["type"] == "integer":
            yield from (1.5, -1)
    if about.get("type") == "string" or "oneOf" in about or "enum" in about:
        words = [choice["const"] for choice in about.get("oneOf", [])] + about.get("enum", [])
        yield from words
        yield from (1, "no such word", "", "a/b", ".a", "A" * 64, "0" * 64, "0" * 63)
    if about.get("type") == "array":
        yield from ([], "a", [1], [[128, 128], [0, 128]], [[128, 128], [8192, 8193]], [[128]], ["stride4", "stride8"])
    if about.get("type") == "object":
        yield from ({"no-such-key": "a"}, 1)


# What no schema can say: names, hashes and sizes that must be those of another file or folder, or fit one another.
ELSEWHERE = (
    "but the folder is called",
    "the head was trained on",
    "is not among the backbone's",
    "is named twice",
    "to the sides of the input size",
    "has no meaning for resize",
    "hashes to",
    "cannot be read",
)


@pytest.mark.parametrize("file", FILES)
def test_the_schemas_and_the_server_agree(file, tmp_path):
    said, schema = manifests(), schema_of(file)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(said[file])
    accepted, complaint = server_accepts(tmp_path / "sound", said)
    assert accepted, complaint
    tried = refused = 0
    for number, (path, about) in enumerate([*leaves(schema), (("no-such-key",), {"type": "string"})]):
        for index, value in enumerate(values(about)):
            changed = with_value(said[file], path, value)
            by_schema = validator.is_valid(changed)
            by_server, complaint = server_accepts(tmp_path / f"{number}-{index}", {**said, file: changed})
            if by_schema and not by_server and any(words in complaint for words in ELSEWHERE):
                continue
            assert by_schema == by_server, f"{path} = {value!r}: {complaint}"
            if not by_server:
                # Wherever it can be told, the file and the key are.
                assert complaint.startswith(f"frostline: {file}: "), complaint
                refused += 1
            tried += 1
    assert refused > 50 and tried - refused > 10, (tried, refused)


def test_every_key_of_the_page_is_in_the_schemas():
    page = (ROOT / "models/MANIFEST.md").read_text()
    for file in FILES[:2]:
        for path, about in leaves(schema_of(file)):
            assert f"| `{path[-1]}` |" in page, path
            for bound in ("minimum", "maximum"):
                assert str(about.get(bound, "")) in page
