"""Puts what `frostline reference config-schema` says into the chart's values.schema.json, less what the chart itself sets.

usage: config_schema.py BINARY
"""

import json
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parent / "frostline/values.schema.json"

# Settings that the chart makes of other values.
OWN = {
    "auth": {"audience", "certificates", "issuer", "jwks", "keys"},
    "repository": {"path"},
    "server": {"insecure", "listen"},
    "telemetry": {"admin"},
    "tls": {"cert", "client_ca", "key"},
}
# terminationGracePeriodSeconds is made of these, so they must be there.
NEEDED = {"server": {"lame_duck_seconds": 600, "drain_seconds": 3600}}


def bare(schema: object) -> object:
    """Without what only tools for Rust read."""
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if key not in ("$schema", "default", "format", "title")}
        # Below `properties` these are names of settings.
        named = {key: {name: bare(about) for name, about in kept[key].items()} for key in ("properties",) if key in kept}
        return {key: bare(value) for key, value in kept.items()} | named
    return [bare(item) for item in schema] if isinstance(schema, list) else schema


def config(schema: dict) -> dict:
    """The schema of the value `config`."""
    sections = {}
    for name, section in sorted(bare(schema)["properties"].items()):
        keys = {key: about for key, about in sorted(section["properties"].items()) if key not in OWN.get(name, ())}
        for key, most in NEEDED.get(name, {}).items():
            keys[key] |= {"maximum": most}
        sections[name] = {"type": "object", "properties": keys, "additionalProperties": False}
        if name in NEEDED:
            sections[name]["required"] = sorted(NEEDED[name])
    return {"type": "object", "properties": sections, "additionalProperties": False, "required": sorted(NEEDED)}


def made(binary: Path | str) -> str:
    """The file as it should be."""
    command = [str(binary), "reference", "config-schema"]
    schema = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    values = json.loads(FILE.read_text())
    values["properties"]["config"] = config(schema)
    return json.dumps(values, indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(made(sys.argv[1]))
