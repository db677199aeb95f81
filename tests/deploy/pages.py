"""What the pages say, taken apart: commands of their code blocks, and the names in their inline code."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fleet import ROOT

# A changelog tells of what was, and a generated page is held to the code by other tests.
SKIPPED = {"CHANGELOG.md"}
SHELLS = {"", "sh", "bash", "console"}


def listed(*patterns: str) -> list[Path]:
    """Files that git knows."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / line for line in output.splitlines() if (ROOT / line).is_file()]


def pages() -> list[Path]:
    return [path for path in listed("*.md") if path.name not in SKIPPED and "src" not in path.relative_to(ROOT).parts]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```", page.read_text())
    return [Block(page, language, text) for language, text in found]


def commands(block: Block) -> list[str]:
    """The commands of a block, continued lines joined, comments and what they print left out."""
    if block.language not in SHELLS:
        return []
    text = block.text.replace("\\\n", " ")
    lines = text.splitlines()
    prompted = [line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")]
    return [line for line in map(bare, prompted or lines) if line]


def bare(line: str) -> str:
    """Without a comment: from a ` #` outside quotes on."""
    quote = ""
    for index, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (index == 0 or line[index - 1] in " \t"):
            return line[:index].strip()
    return line.strip()


def words(command: str) -> list[list[str]]:
    """The simple commands of a line, each as its words, variables before it and redirections left out."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    skip = False
    for token in lexer:
        if set(token) <= set("&|;"):
            found.append([])
        elif set(token) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        elif found[-1] or not re.match(r"[A-Z_]+=", token):
            found[-1].append(token)
    return [one for one in found if one]


def inline(page: Path) -> list[str]:
    """What stands in single backticks, outside blocks."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text())
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, of those inside the repository."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text())
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", text))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made where such pages are shown."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
