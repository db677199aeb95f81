"""Label files: a name a line, a JSON list, or a JSON object from index to name."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import at


def read(path: Path) -> list[str]:
    """The names by index."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise at(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise at(path, "is not UTF-8 text; save the label names as UTF-8, one a line") from None
    if path.suffix.lower() == ".json":
        return _from_json(path, text)
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    for i, name in enumerate(names):
        if not name:
            raise at(path, f"line {i + 1} is empty; every line names the label of its number, from 0")
    return names


def _from_json(path: Path, text: str) -> list[str]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise at(path, f"is not JSON: {error}") from None
    if isinstance(found, dict) and "id2label" in found:  # Hugging Face's config.json
        found = found["id2label"]
    if isinstance(found, dict):
        try:
            numbered = {int(key): value for key, value in found.items()}
        except ValueError:
            raise at(path, "must map numbers to names, or be a list of names") from None
        if sorted(numbered) != list(range(len(numbered))):
            raise at(path, f"must number its {len(numbered)} labels from 0 on without a gap")
        found = [numbered[i] for i in range(len(numbered))]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise at(path, "must be a list of names, or map numbers to names")
    return found


def fit(path: str, names: list[str], form, source: Path) -> list[str]:
    """The names, if they are as many as the form's classes."""
    if form.classes == 0:
        return []
    tensor = next(iter(form.inputs.values())) if len(form.inputs) == 1 else form.inputs.get("logits") or form.inputs.get("heat") or next(iter(form.inputs.values()))
    if form.classes > 0 and len(names) != form.classes:
        raise at(
            path,
            f"has {len(names)} names, but tensor {tensor!r} of {source.name} has {form.classes} classes ({form.name}); "
            "give a file with a name for each, or another --form",
        )
    if not names:
        raise at(path, "has no names")
    return names
