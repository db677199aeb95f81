"""What several models share: tensors that the same weights make in the same way.

Each tensor gets a key from its operator, attributes, weights and the keys of what it reads.
Equal keys mean equal values for every picture, whatever the tensors are called.
"""

from __future__ import annotations

import hashlib

from onnx import numpy_helper

from ..errors import at
from .cuts import Cut, Finder, Map, bits, suggest
from .graph import Graph


def keys(graph: Graph) -> dict[str, str]:
    """The key of every tensor."""
    found = {i.name: "picture" for i in graph.inputs}
    for weight in graph.model.graph.initializer:
        array = numpy_helper.to_array(weight)
        digest = hashlib.sha256(f"{weight.data_type} {array.shape}".encode())
        digest.update(array.tobytes())
        found[weight.name] = digest.hexdigest()
    versions = {o.domain: o.version for o in graph.model.opset_import}
    for node in graph.nodes:
        parts = [node.domain, node.op_type, str(versions.get(node.domain, 0))]
        parts += [found.get(name, "") for name in node.input]
        parts += sorted(a.SerializeToString(deterministic=True).hex() for a in _attributes(node))
        own = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        for i, name in enumerate(node.output):
            found[name] = f"{own}:{i}"
    return found


def _attributes(node):
    for attribute in node.attribute:
        plain = type(attribute)()
        plain.CopyFrom(attribute)
        plain.ClearField("doc_string")
        yield plain


def shared(finders: list[Finder], names: list[str] | None) -> list[Cut]:
    """One cut for all models, of each model in its own names and with equal maps in equal order.

    ``names`` are tensors of the first model; unset: the most work that all have in common.
    """
    tables = [keys(f.graph) for f in finders]
    everywhere = set.intersection(*(set(t.values()) for t in tables))
    first, table = finders[0], tables[0]
    if names:
        cuts = [first.at(names)]
        for name in names:
            if table[name] not in everywhere:
                other = next(f for f, t in zip(finders, tables) if table[name] not in t.values())
                raise at(
                    other.graph.source,
                    f"computes no tensor equal to {name!r} of {first.graph.source.name}: the trunks differ before it; "
                    "cut earlier, or leave --cut out to find where they part",
                )
    else:
        cuts = [c for c in first.all() if all(table[m.tensor] in everywhere for m in c.maps)]
        if not cuts:
            raise at(
                finders[1].graph.source,
                f"shares no feature map with {first.graph.source.name}: the weights differ from the first layers on; "
                "were the trunks frozen when they were tuned?",
            )
        best = suggest(cuts)
        cuts = [best] + [c for c in sorted(cuts, key=lambda c: -c.before) if c is not best]
    for cut in cuts:
        if (found := _everywhere(cut, finders, tables)) is not None:
            return found
    raise at(first.graph.source, "no cut separates all models; name one with --cut")


def _everywhere(cut: Cut, finders: list[Finder], tables: list[dict[str, str]]) -> list[Cut] | None:
    """The cut in each model; maps that only some of them read are handed on to all."""
    inner = {tables[0][o] for i in cut.nodes for o in finders[0].graph.nodes[i].output if o}
    wanted: dict[str, Map] = {}
    insides = []
    for finder, table in zip(finders, tables):
        inside = 0
        for i, node in enumerate(finder.graph.nodes):
            if i not in finder.free and all(table[o] in inner for o in node.output if o):
                inside |= 1 << i
        part = finder.cut(inside, finder.boundary(inside))
        if part is None:
            return None
        insides.append(inside)
        for m in part.maps:
            wanted.setdefault(table[m.tensor], m)
    order = sorted(wanted, key=lambda key: wanted[key].stride)
    cuts = []
    for finder, table, inside in zip(finders, tables, insides):
        own = {key: name for name, key in table.items() if name in finder.graph.producer}
        maps = tuple(finder.map(own[key]) for key in order)
        if None in maps:
            return None
        before = sum(finder.work[i] for i in bits(inside)) / finder.total
        cuts.append(Cut(maps, before, frozenset(bits(inside)), cut.upsampled))
    return cuts


def read(finder: Finder, cut: Cut) -> list[Map]:
    """Those of the cut's maps that this model's head reads."""
    inside = sum(1 << i for i in cut.nodes)
    boundary = set(finder.boundary(inside))
    return [m for m in cut.maps if m.tensor in boundary]
