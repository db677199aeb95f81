//! The rows of a mask in COCO's run lengths (`Mask.counts`).
//!
//! usage: rustc masks.rs && ./masks HEIGHT WIDTH COUNTS

// decoder
/// Pixels row by row, 0 or 1.
fn decode(counts: &str, height: usize, width: usize) -> Vec<u8> {
    let (mut pixels, mut lengths) = (vec![0; height * width], Vec::<i64>::new());
    let (mut at, mut number, mut shift) = (0, 0, 0);
    for character in counts.bytes() {
        let group = i64::from(character) - 48;
        number |= (group & 31) << shift;
        shift += 5;
        if group & 32 != 0 {
            continue;
        }
        if group & 16 != 0 {
            number -= 1 << shift;
        }
        if lengths.len() > 2 {
            number += lengths[lengths.len() - 2];
        }
        for _ in 0..number {
            pixels[at % height * width + at / height] = (lengths.len() % 2) as u8;
            at += 1;
        }
        lengths.push(std::mem::take(&mut number));
        shift = 0;
    }
    pixels
}
// end

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (height, width) = (arguments[1].parse().unwrap(), arguments[2].parse().unwrap());
    for row in decode(&arguments[3], height, width).chunks(width) {
        println!("{}", row.iter().map(u8::to_string).collect::<String>());
    }
}
