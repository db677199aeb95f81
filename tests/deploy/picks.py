"""What a manifest selects: every selector in it, wherever it stands, and what its kind must select by."""

import re

# Kinds that act on pods, and where they say on which.
REQUIRED = {
    "Deployment": "spec.selector.matchLabels",
    "Service": "spec.selector",
    "PodDisruptionBudget": "spec.selector.matchLabels",
    "NetworkPolicy": "spec.podSelector.matchLabels",
    "ServiceMonitor": "spec.selector.matchLabels",
}


def at(document: dict, path: str) -> object:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def selectors(node: object, path: str = "") -> list[tuple[str, object]]:
    """Every `selector`, `podSelector`, `namespaceSelector`, ... below a node, with its place."""
    found = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        here = f"{path}.{key}".lstrip(".")
        if re.fullmatch(r"(?:.*S|s)electors?", str(key)):
            found.append((here, value))
        found += selectors(value, here)
    return found


def takes_all(selector: object) -> bool:
    """Whether a selector picks everything: nothing in it, or nothing in its parts."""
    if not selector:
        return True
    names = ("matchLabels", "matchExpressions", "matchNames")
    parts = [selector[name] for name in names if name in selector] if isinstance(selector, dict) else []
    return bool(parts) and not any(parts)


def problems(document: dict) -> list[str]:
    """Empty selectors of a document, missing ones, and rules of a policy that let everybody in."""
    kind = document.get("kind", "")
    found = [f"{path} is empty" for path, selector in selectors(document) if takes_all(selector)]
    if (path := REQUIRED.get(kind)) and not at(document, path):
        found.append(f"{path} is missing")
    if kind == "NetworkPolicy":
        rules = document["spec"].get("ingress") or []
        found += [f"spec.ingress.{index}.from is missing" for index, rule in enumerate(rules) if not rule.get("from")]
        found += [f"spec.ingress.{index} has an empty peer" for index, rule in enumerate(rules) if not all(rule.get("from", []))]
    if kind == "Deployment":
        spread = document["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        found += ["a topologySpreadConstraint counts every pod" for one in spread if not one.get("labelSelector")]
    return [f"{kind} {document.get('metadata', {}).get('name', '')}: {problem}" for problem in found]
