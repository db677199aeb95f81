//! What every decoder must keep to.

use frostline::media::{Limits, decode, probe};

/// Decodes `magic` and what follows it in `bytes`.
pub fn check(magic: &[u8], bytes: &[u8]) {
    let mut file = bytes.to_vec();
    // Always this format: the other targets try the others.
    for (into, from) in file.iter_mut().zip(magic) {
        *into = *from;
    }
    let limits = Limits {
        max_pixels: 1 << 16,
        max_side: 4096,
        ..Limits::default()
    };
    let header = probe(&file, &limits);
    match decode(&file, &limits) {
        Ok(image) => {
            let header = header.expect("what has no header has no pixels");
            assert_eq!((image.width(), image.height()), (header.width, header.height));
            let pixels = image.width() as usize * image.height() as usize;
            assert!(pixels <= 1 << 16);
            assert_eq!(image.data().len(), pixels * 3);
        }
        // An error has a text that fits on a screen, whatever is in the file.
        Err(error) => assert!(error.to_string().len() < 4096),
    }
}
