"""A folder of pictures, many at once, as fast as the server takes them.

Calls that the server refuses because it is full are made again after the time that it names.

usage: python folder.py ADDRESS FOLDER
"""

import asyncio
import sys
from pathlib import Path

from frostline_client import AsyncClient, FrostlineError


async def main(address: str, folder: str, at_once: int = 16) -> None:
    places = asyncio.Semaphore(at_once)

    async def one(client: AsyncClient, path: Path) -> str:
        async with places:
            try:
                found = await client.detect(path, masks=False, priority="background")
            except FrostlineError as error:
                return f"{path.name}: {error}"
        return f"{path.name}: {', '.join(sorted(d.name for d in found)) or 'nothing'}"

    async with AsyncClient(address, timeout=60) as client:
        pictures = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for line in await asyncio.gather(*(one(client, path) for path in pictures)):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
