"""The pixels of a mask in COCO's run lengths (`Mask.counts`), without a library.

usage: python masks.py HEIGHT WIDTH COUNTS: prints the rows, 0 and 1
"""

import sys


# decoder
def decode(counts: str, height: int, width: int) -> list[list[int]]:
    """Rows of 0 and 1."""
    lengths, number, shift = [], 0, 0
    for character in counts:
        group = ord(character) - 48
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    pixels = [i % 2 for i, length in enumerate(lengths) for _ in range(length)]
    return [pixels[y::height] for y in range(height)]
# end


if __name__ == "__main__":
    for row in decode(sys.argv[3], int(sys.argv[1]), int(sys.argv[2])):
        print("".join(map(str, row)))
