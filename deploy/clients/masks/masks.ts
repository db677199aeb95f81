// The rows of a mask in COCO's run lengths (Mask.counts).
//
// usage: npx --package typescript tsc --strict --target es2022 masks.ts && node masks.js HEIGHT WIDTH COUNTS

// decoder
/** Pixels row by row, 0 or 1. */
function decode(counts: string, height: number, width: number): Uint8Array {
  const pixels = new Uint8Array(height * width);
  const lengths: number[] = [];
  let [at, value, shift] = [0, 0, 0];
  for (let i = 0; i < counts.length; i++) {
    const group = counts.charCodeAt(i) - 48;
    value += (group & 31) * 2 ** shift;
    shift += 5;
    if (group & 32) continue;
    if (group & 16) value -= 2 ** shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2]!;
    for (const end = at + value; at < end; at++) {
      pixels[(at % height) * width + Math.floor(at / height)] = lengths.length % 2;
    }
    lengths.push(value);
    [value, shift] = [0, 0];
  }
  return pixels;
}
// end

declare const process: { argv: string[] };
const [height, width, counts] = process.argv.slice(2);
const pixels = decode(counts!, Number(height), Number(width));
for (let at = 0; at < pixels.length; at += Number(width)) {
  console.log(pixels.subarray(at, at + Number(width)).join(""));
}
