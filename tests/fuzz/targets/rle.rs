//! Any text as a compressed mask: an error, or a mask that comes back as it was read.
#![no_main]

use frostline::task::Rle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u16, &[u8])| {
    let (height, width, text) = input;
    let (height, width) = (u32::from(height % 512), u32::from(width % 512));
    let Ok(mask) = Rle::from_coco_string(height, width, text) else {
        return;
    };
    let pixels = mask.to_rows();
    assert_eq!(pixels.len(), (height * width) as usize);
    assert_eq!(pixels.iter().filter(|p| **p).count() as u64, mask.area());
    let again = Rle::from_coco_string(height, width, mask.to_coco_string().as_bytes());
    assert_eq!(again.as_ref(), Ok(&mask));
    // From its pixels it is the same mask, written in the one way without empty runs.
    let columns = (0..width).flat_map(|x| (0..height).map(move |y| (x, y)));
    let drawn = Rle::from_columns(
        height,
        width,
        columns.map(|(x, y)| pixels[(y * width + x) as usize]),
    );
    assert_eq!(drawn.to_rows(), pixels);
});
