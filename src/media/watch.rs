//! Whether a picture is still wanted, asked again and again while it is decoded.
//!
//! Decoders that give rows are asked between rows. Those that give a whole picture are asked where they read: their file
//! comes to them in pieces, and the reader fails once the picture is not wanted any more.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

/// Whether the picture is still wanted. Once false it stays so.
pub(super) type Keep<'a> = &'a dyn Fn() -> bool;

/// Bytes of a piece, where a decoder reads a little at a time.
pub(super) const PIECE: usize = 4 << 10;

/// Pixels of a slice: a few milliseconds of any decoder.
const SLICE: usize = 1 << 18;

/// Rows of `width` pixels that are decoded or resized before it is asked again; at least one.
pub(super) fn rows_of(width: usize) -> usize {
    (SLICE / width.max(1)).max(1)
}

/// A file that is read as long as its picture is wanted.
pub(super) struct Watched<'a> {
    bytes: &'a [u8],
    /// What is left of the present piece.
    piece: &'a [u8],
    /// Where it ends.
    end: usize,
    length: usize,
    /// Where pieces end whatever their length, in order.
    stops: Vec<usize>,
    keep: Keep<'a>,
}

impl<'a> Watched<'a> {
    /// In pieces of `length` bytes.
    pub(super) fn new(bytes: &'a [u8], length: usize, keep: Keep<'a>) -> Self {
        Self {
            bytes,
            piece: &[],
            end: 0,
            length,
            stops: Vec::new(),
            keep,
        }
    }

    /// Ends pieces at `stops` as well, which are in order.
    pub(super) fn stopping_at(mut self, stops: Vec<usize>) -> Self {
        self.stops = stops;
        self
    }

    #[cold]
    fn next_piece(&mut self) -> io::Result<()> {
        let Some(rest) = self.bytes.get(self.end..).filter(|rest| !rest.is_empty()) else {
            return Ok(());
        };
        if !(self.keep)() {
            return Err(unwanted());
        }
        let passed = self.stops.partition_point(|stop| *stop <= self.end);
        let stop = self
            .stops
            .get(passed)
            .map_or(usize::MAX, |stop| stop - self.end);
        self.piece = &rest[..rest.len().min(self.length).min(stop)];
        self.end += self.piece.len();
        Ok(())
    }
}

/// What a reader says once its picture is not wanted any more; whoever called the decoder knows the reason.
pub(super) fn unwanted() -> io::Error {
    io::Error::other("the picture is not wanted any more")
}

impl BufRead for Watched<'_> {
    #[inline(always)]
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty() {
            self.next_piece()?;
        }
        Ok(self.piece)
    }

    #[inline(always)]
    fn consume(&mut self, amount: usize) {
        self.piece = self.piece.get(amount..).unwrap_or_default();
    }
}

impl Read for Watched<'_> {
    #[inline]
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            self.next_piece()?;
        }
        self.piece.read(out)
    }

    #[inline]
    fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        if self.piece.len() >= out.len() {
            return self.piece.read_exact(out);
        }
        let mut out = out;
        while !out.is_empty() {
            match self.read(out)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => out = &mut out[read..],
            }
        }
        Ok(())
    }
}

impl Seek for Watched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = self.end - self.piece.len();
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => (self.bytes.len() as u64).checked_add_signed(by),
            SeekFrom::Current(by) => (at as u64).checked_add_signed(by),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "a place before the file");
        let place = place.ok_or_else(before)?;
        let to = usize::try_from(place).unwrap_or(usize::MAX);
        // What of the present piece lies ahead is read on without asking again.
        match to >= at && to <= self.end {
            true => self.piece = &self.piece[to - at..],
            false => (self.piece, self.end) = (&[], to),
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a cursor over the same bytes, whatever is asked of it.
        #[test]
        fn it_reads_what_a_cursor_reads(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            piece in 1..40_usize,
            mut stops in proptest::collection::vec(0..220_usize, 0..6),
            steps in proptest::collection::vec((0..4_u8, 0..90_i64), 1..40),
        ) {
            stops.sort_unstable();
            let mut cursor = io::Cursor::new(&bytes);
            let mut watched = Watched::new(&bytes, piece, &|| true).stopping_at(stops);
            for (what, number) in steps {
                match what {
                    0 => {
                        let to = SeekFrom::Start(number as u64 * 3);
                        prop_assert_eq!(cursor.seek(to).ok(), watched.seek(to).ok());
                    }
                    1 => {
                        let to = SeekFrom::Current(number - 45);
                        prop_assert_eq!(cursor.seek(to).ok(), watched.seek(to).ok());
                    }
                    2 => {
                        let to = SeekFrom::End(-number);
                        prop_assert_eq!(cursor.seek(to).ok(), watched.seek(to).ok());
                    }
                    _ => {
                        let (mut a, mut b) = (vec![0; number as usize], vec![0; number as usize]);
                        let read = cursor.read_exact(&mut a).is_ok();
                        prop_assert_eq!(read, watched.read_exact(&mut b).is_ok());
                        if !read {
                            break;
                        }
                        prop_assert_eq!(a, b);
                    }
                }
            }
        }
    }

    #[test]
    fn it_is_asked_before_each_piece_and_at_each_stop() {
        let (asked, left) = (Cell::new(0), Cell::new(100));
        let keep = || {
            asked.set(asked.get() + 1);
            left.set(left.get() - 1);
            left.get() >= 0
        };
        let bytes = vec![7; 1000];
        let mut all = Vec::new();
        let read = Watched::new(&bytes, 100, &keep).read_to_end(&mut all);
        assert_eq!((read.unwrap(), asked.get()), (1000, 10));
        asked.set(0);
        let mut stopping = Watched::new(&bytes, 1000, &keep).stopping_at(vec![3, 5, 990]);
        stopping.read_to_end(&mut all).unwrap();
        assert_eq!(asked.get(), 4);
        left.set(3);
        all.clear();
        let cut = Watched::new(&bytes, 100, &keep).read_to_end(&mut all);
        assert!(cut.is_err() && all.len() == 300);
    }
}
