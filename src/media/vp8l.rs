//! How much the code tables of a lossless WebP take, counted before any of them is built.
//!
//! A picture of any size may bring 65536 groups of five Huffman codes; from three megabytes of file a decoder builds
//! more than a gigabyte of tables. What libwebp's encoder writes has at most 2600 groups. So the stream is read here
//! up to the pixels, following the specification (RFC 9649, section 3), keeping sums and no tables.

use super::{error::MediaError, format::Format};

/// Most bytes of tables.
pub(super) const TABLE_BYTES: usize = 96 << 20;
/// What a group of codes takes of itself: a list of them grows by doubling.
const GROUP_BYTES: usize = 640;
/// Two allocations.
const CODE_BYTES: usize = 96;
/// Longest code that a table looks up at once; longer ones have nodes in a tree.
const TABLE_BITS: usize = 10;
const NODE_BYTES: usize = 16;

const GREEN: u16 = 256 + 24;
/// Red, blue, alpha and distance.
const OTHERS: [u16; 4] = [256, 256, 256, 40];
const LONGEST: usize = 15;
const LENGTHS_ORDER: [usize; 19] = [
    17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
];

/// Checks the tables of a lossless bitstream of `width` x `height` pixels.
///
/// # Errors
/// [`MediaError::UnsupportedFormat`] beyond the bound, [`MediaError::Corrupt`] for what cannot be read so far.
pub(super) fn check_tables(stream: &[u8], width: u32, height: u32) -> Result<(), MediaError> {
    // Signature, sides, alpha and version: five bytes.
    let bits = Bits::new(stream.get(5..).unwrap_or_default());
    let bytes = Walk { bits }
        .tables(width, height)
        .ok_or_else(|| Format::WebP.corrupt("its codes are damaged"))?;
    if bytes > TABLE_BYTES {
        let limit = TABLE_BYTES >> 20;
        return Err(Format::WebP.unsupported(format!("its code tables take more than {limit} MB")));
    }
    Ok(())
}

struct Walk<'a> {
    bits: Bits<'a>,
}

impl Walk<'_> {
    /// Bytes of all tables, or a number beyond the bound; none where the stream is damaged.
    fn tables(&mut self, width: u32, height: u32) -> Option<usize> {
        let mut columns = width;
        let mut seen = [false; 4];
        while self.bits.read(1)? == 1 {
            let kind = self.bits.read(2)? as usize;
            if std::mem::replace(seen.get_mut(kind)?, true) {
                return None;
            }
            match kind {
                // Predictors and colours: a small picture of what each block of pixels takes.
                0 | 1 => {
                    let block = self.bits.read(3)? + 2;
                    self.picture(blocks(columns, block), blocks(height, block))?;
                }
                2 => {}
                // A palette; several pixels of few colours lie in one.
                _ => {
                    let colors = self.bits.read(8)? + 1;
                    self.picture(colors, 1)?;
                    let shared = match colors {
                        0..=2 => 3,
                        3..=4 => 2,
                        5..=16 => 1,
                        _ => 0,
                    };
                    columns = blocks(columns, shared);
                }
            }
        }
        let green = GREEN + self.cache()?;
        let mut groups = 1;
        if self.bits.read(1)? == 1 {
            let block = self.bits.read(3)? + 2;
            groups = self.picture(blocks(columns, block), blocks(height, block))? + 1;
        }
        let mut bytes = 0;
        for _ in 0..groups {
            bytes += GROUP_BYTES;
            for symbols in [green].into_iter().chain(OTHERS) {
                bytes += self.code(symbols)?.bytes();
            }
            if bytes > TABLE_BYTES {
                break;
            }
        }
        Some(bytes)
    }

    /// Colours that the cache adds to the alphabet of green.
    fn cache(&mut self) -> Option<u16> {
        if self.bits.read(1)? == 0 {
            return Some(0);
        }
        let bits = self.bits.read(4)?;
        (1..=11).contains(&bits).then(|| 1 << bits)
    }

    /// Steps over a picture that is coded within the stream, and says the largest number in its red and green.
    /// Copied and cached pixels have been there before, so the literal ones tell.
    fn picture(&mut self, width: u32, height: u32) -> Option<u32> {
        let green = self.cache()? + GREEN;
        let green = self.code(green)?.lookup()?;
        let [red, blue, alpha, distance] = OTHERS.map(|symbols| self.code(symbols)?.lookup());
        let (red, blue, alpha, distance) = (red?, blue?, alpha?, distance?);
        let mut left = u64::from(width) * u64::from(height);
        let mut most = 0;
        while left > 0 {
            let symbol = u32::from(green.read(&mut self.bits)?);
            let mut taken = 1;
            if symbol < 256 {
                let number = u32::from(red.read(&mut self.bits)?) << 8 | symbol;
                most = most.max(number);
                blue.read(&mut self.bits)?;
                alpha.read(&mut self.bits)?;
            } else if symbol < u32::from(GREEN) {
                taken = self.prefixed(symbol - 256)?;
                let prefix = distance.read(&mut self.bits)?;
                self.prefixed(u32::from(prefix))?;
            }
            left = left.saturating_sub(u64::from(taken));
        }
        Some(most)
    }

    /// A length or a distance: its prefix, and bits of its own.
    fn prefixed(&mut self, prefix: u32) -> Option<u32> {
        if prefix < 4 {
            return Some(prefix + 1);
        }
        let extra = (prefix - 2) >> 1;
        Some(((2 + (prefix & 1)) << extra) + self.bits.read(extra)? + 1)
    }

    fn code(&mut self, symbols: u16) -> Option<Code> {
        if self.bits.read(1)? == 1 {
            let two = self.bits.read(1)? == 1;
            let wide = self.bits.read(1)?;
            let first = self.bits.read(1 + 7 * wide)? as u16;
            let second = if two {
                Some(self.bits.read(8)? as u16)
            } else {
                None
            };
            if first.max(second.unwrap_or(0)) >= symbols {
                return None;
            }
            return Some(Code::Simple(first, second));
        }
        let mut lengths = [0; 19];
        let count = 4 + self.bits.read(4)? as usize;
        for &at in LENGTHS_ORDER.get(..count)? {
            lengths[at] = self.bits.read(3)? as u8;
        }
        let coded = Code::Lengths(lengths.to_vec()).lookup()?;
        let mut left = u32::from(symbols);
        if self.bits.read(1)? == 1 {
            let bits = 2 + 2 * self.bits.read(3)?;
            left = 2 + self.bits.read(bits)?;
        }
        let mut lengths = Vec::with_capacity(symbols.into());
        let mut last = 8;
        while lengths.len() < symbols.into() && left > 0 {
            left -= 1;
            let (length, times) = match coded.read(&mut self.bits)? {
                16 => (last, 3 + self.bits.read(2)?),
                17 => (0, 3 + self.bits.read(3)?),
                18 => (0, 11 + self.bits.read(7)?),
                length => (length as u8, 1),
            };
            if length != 0 {
                last = length;
            }
            let end = lengths.len() + times as usize;
            if end > symbols.into() {
                return None;
            }
            lengths.resize(end, length);
        }
        Some(Code::Lengths(lengths))
    }
}

/// Blocks of `1 << bits` pixels that a side has.
fn blocks(side: u32, bits: u32) -> u32 {
    side.div_ceil(1 << bits)
}

/// One Huffman code as the stream gives it.
enum Code {
    /// One symbol of no bits, or two of one bit.
    Simple(u16, Option<u16>),
    /// The length of each symbol's code; 0 where it has none.
    Lengths(Vec<u8>),
}

impl Code {
    /// What the decoder makes of it.
    fn bytes(&self) -> usize {
        let Self::Lengths(lengths) = self else {
            return CODE_BYTES;
        };
        let longest = usize::from(lengths.iter().copied().max().unwrap_or(0));
        let nodes = lengths
            .iter()
            .filter(|&&length| usize::from(length) > TABLE_BITS)
            .count();
        CODE_BYTES + (4 << longest.min(TABLE_BITS)) + 2 * nodes * NODE_BYTES
    }

    /// A table over all bits of the longest code.
    fn lookup(&self) -> Option<Lookup> {
        let lengths = match self {
            Self::Simple(symbol, None) => {
                return Some(Lookup {
                    bits: 0,
                    table: vec![(*symbol, 0)],
                });
            }
            Self::Simple(first, Some(second)) => {
                return Some(Lookup {
                    bits: 1,
                    table: vec![(*first, 1), (*second, 1)],
                });
            }
            Self::Lengths(lengths) => lengths,
        };
        let longest = usize::from(lengths.iter().copied().max()?);
        let used = lengths.iter().filter(|&&length| length != 0).count();
        if used == 1 {
            let symbol = lengths.iter().position(|&length| length != 0)? as u16;
            return Some(Lookup {
                bits: 0,
                table: vec![(symbol, 0)],
            });
        }
        if !(1..=LONGEST).contains(&longest) {
            return None;
        }
        let mut table = vec![(0, 0); 1 << longest];
        let mut code = 0_usize;
        for length in 1..=longest {
            let of_length = lengths
                .iter()
                .enumerate()
                .filter(|&(_, &of)| usize::from(of) == length);
            for (symbol, _) in of_length {
                // The first bit of a code is the lowest of the stream.
                let reversed = code.reverse_bits() >> (usize::BITS as usize - length);
                let places = table.get_mut(reversed..)?.iter_mut().step_by(1 << length);
                places.for_each(|place| *place = (symbol as u16, length as u32));
                code += 1;
            }
            code <<= 1;
        }
        // All codes together fill the table and no more.
        (code == 2 << longest).then_some(Lookup {
            bits: longest as u32,
            table,
        })
    }
}

struct Lookup {
    bits: u32,
    /// Symbol and length of its code.
    table: Vec<(u16, u32)>,
}

impl Lookup {
    fn read(&self, bits: &mut Bits<'_>) -> Option<u16> {
        let &(symbol, length) = self.table.get(bits.peek(self.bits) as usize)?;
        bits.skip(length)?;
        Some(symbol)
    }
}

/// Bits, lowest first. At most 24 are looked at together.
struct Bits<'a> {
    rest: &'a [u8],
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            held: 0,
            count: 0,
        }
    }

    /// The next bits; zeros behind the end.
    fn peek(&mut self, count: u32) -> u32 {
        while self.count < count {
            let Some((&byte, rest)) = self.rest.split_first() else {
                break;
            };
            self.rest = rest;
            self.held |= u64::from(byte) << self.count;
            self.count += 8;
        }
        (self.held & ((1 << count) - 1)) as u32
    }

    fn skip(&mut self, count: u32) -> Option<()> {
        self.count = self.count.checked_sub(count)?;
        self.held >>= count;
        Some(())
    }

    fn read(&mut self, count: u32) -> Option<u32> {
        let value = self.peek(count);
        self.skip(count)?;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Writer {
        bytes: Vec<u8>,
        count: usize,
    }

    impl Writer {
        fn put(&mut self, value: u32, count: usize) {
            for bit in 0..count {
                if self.count.is_multiple_of(8) {
                    self.bytes.push(0);
                }
                *self.bytes.last_mut().unwrap() |= ((value >> bit & 1) as u8) << (self.count % 8);
                self.count += 1;
            }
        }

        /// A code of one symbol.
        fn symbol(&mut self, symbol: u32) {
            self.put(0b101, 3);
            self.put(symbol, 8);
        }

        /// A code whose longest words have ten bits: 1, 2, 3 and so on to 9, and 10 twice.
        fn deep(&mut self) {
            self.put(0, 1);
            // Fourteen lengths of lengths: six of three bits and four of four, for lengths 1 to 10.
            self.put(10, 4);
            for length in [0, 0, 0, 3, 3, 3, 3, 3, 0, 3, 4, 4, 4, 4] {
                self.put(length, 3);
            }
            // Eleven symbols have lengths.
            self.put(1, 1);
            self.put(1, 3);
            self.put(9, 4);
            let words = [
                0b000, 0b001, 0b010, 0b011, 0b100, 0b101, 0b1100, 0b1101, 0b1110, 0b1111,
            ];
            for length in (0..10).chain([9]) {
                let count: usize = if length < 6 { 3 } else { 4 };
                // Words are written from their highest bit.
                let word: u32 = words[length];
                self.put(word.reverse_bits() >> (32 - count), count);
            }
        }
    }

    /// A picture of 4 x 4 pixels whose one block names its group.
    fn groups(number: u32, deep: bool) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.put(0x2f, 8);
        writer.put(3, 14);
        writer.put(3, 14);
        // No alpha, version 0, no transform, no cache, groups in blocks of four pixels; the groups' picture without a
        // cache.
        writer.put(0, 4);
        writer.put(0, 1);
        writer.put(0, 1);
        writer.put(1, 1);
        writer.put(0, 3);
        writer.put(0, 1);
        for symbol in [number & 255, number >> 8, 0, 0, 0] {
            writer.symbol(symbol);
        }
        for _ in 0..=number {
            for _ in 0..5 {
                if deep {
                    writer.deep();
                } else {
                    writer.symbol(0);
                }
            }
        }
        writer.bytes
    }

    fn file(stream: &[u8]) -> Vec<u8> {
        let length = stream.len() as u32;
        let parts = [
            b"RIFF",
            &(length + 12).to_le_bytes()[..],
            b"WEBPVP8L",
            &length.to_le_bytes(),
            stream,
        ];
        parts.concat()
    }

    #[test]
    fn tables_are_counted_before_they_are_built() {
        assert_eq!(check_tables(&groups(0, false), 4, 4), Ok(()));
        assert_eq!(check_tables(&groups(2600, true), 4, 4), Ok(()));
        let bomb = groups(0xffff, true);
        assert!(bomb.len() < 5 << 20);
        let refused = check_tables(&bomb, 4, 4);
        assert!(
            matches!(refused, Err(MediaError::UnsupportedFormat { .. })),
            "{refused:?}"
        );
        // A distance's code of one symbol beyond its alphabet.
        let mut writer = Writer::default();
        writer.put(0x2f, 8);
        writer.put(0, 32);
        writer.put(0b0000, 4);
        writer.put(1, 1);
        writer.put(0, 3);
        writer.put(0, 1);
        for symbol in [0, 0, 0, 0, 200] {
            writer.symbol(symbol);
        }
        assert!(check_tables(&writer.bytes, 4, 4).is_err());
        for length in [0, 4, 5, 8, 12] {
            let cut = check_tables(&groups(3, true)[..length], 4, 4);
            assert!(
                matches!(cut, Err(MediaError::Corrupt { .. })),
                "{length}: {cut:?}"
            );
        }
    }

    #[test]
    fn the_decoder_reads_the_same_codes() {
        let limits = crate::media::Limits::default();
        for (number, deep) in [(0, false), (1, false), (300, false), (0, true), (70, true)] {
            let mut stream = groups(number, deep);
            // Pixels of one symbol take no bits, those of deep codes one each.
            stream.extend([0; 16]);
            let image = crate::media::decode(&file(&stream), &limits);
            assert!(image.is_ok(), "{number} {deep}: {image:?}");
        }
    }
}
