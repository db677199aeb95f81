//! Frames of HTTP/2 as they come: those that only make work are bounded by what is done with the connection.
//!
//! A connection has credit, which calls and what they carry earn and other frames cost: without calls a flood of PING,
//! PRIORITY, WINDOW_UPDATE, SETTINGS or empty frames ends it soon. Resets have a bucket of their own, since each of them
//! follows a call: a caller that gives up at a deadline resets, but not thousands of calls a second for long.

use std::time::Instant;

/// Credit that a connection begins with, and the most that it can have.
const MOST_CREDIT: f64 = 20_000.0;
/// Credit that time gives, a second.
const CREDIT_RATE: f64 = 1_000.0;
/// What a call earns: the frames that come with it.
const CALL_EARNS: f64 = 8.0;
/// Bytes of a body, either way, that earn 1: a window's update for every four kilobytes is far more than any client sends.
const BYTES_EARN_ONE: f64 = 4096.0;
/// What a small DATA frame, and any other frame, costs.
const FRAME_COSTS: f64 = 1.0;
/// What SETTINGS cost: they may change the window of each of a thousand streams.
const SETTINGS_COST: f64 = 100.0;

/// Resets at once, and a second.
const MOST_RESETS: f64 = 16_384.0;
const RESET_RATE: f64 = 4_096.0;

/// A frame's head (RFC 9113, 4.1).
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;

/// Counts a connection's frames.
#[derive(Debug)]
pub(super) struct Meter {
    head: [u8; HEAD],
    head_bytes: usize,
    /// Bytes of the payload, or of the preface, that are still to come.
    skip: usize,
    credit: f64,
    resets: f64,
    /// Resets that nobody has asked for yet.
    came: u64,
    filled: Instant,
}

/// A connection that sends too many frames for what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flood {
    /// Frames that carry nothing.
    Frames,
    /// Resets.
    Resets,
}

impl Meter {
    /// For a connection that begins, at `now`, with `preface` bytes that are no frame.
    pub(super) fn new(preface: usize, now: Instant) -> Self {
        Self {
            head: [0; HEAD],
            head_bytes: 0,
            skip: preface,
            credit: MOST_CREDIT,
            resets: MOST_RESETS,
            came: 0,
            filled: now,
        }
    }

    /// Notes `bytes` that were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.credit += bytes as f64 / BYTES_EARN_ONE;
    }

    /// Resets of streams that have come since it was asked last.
    pub(super) fn new_resets(&mut self) -> u64 {
        std::mem::take(&mut self.came)
    }

    /// Follows `bytes` that came before `now`.
    ///
    /// # Errors
    /// More frames or resets than the connection may send.
    pub(super) fn read(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..][..taken].copy_from_slice(&bytes[..taken]);
            self.head_bytes += taken;
            bytes = &bytes[taken..];
            if self.head_bytes == HEAD {
                self.head_bytes = 0;
                self.count();
            }
        }
        if self.credit >= 0.0 && self.resets >= 0.0 {
            return Ok(());
        }
        self.fill(now);
        match (self.credit < 0.0, self.resets < 0.0) {
            (true, _) => Err(Flood::Frames),
            (_, true) => Err(Flood::Resets),
            _ => Ok(()),
        }
    }

    fn count(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            DATA => {
                self.credit += self.skip as f64 / BYTES_EARN_ONE;
                // Most calls end with a small one, which their HEADERS have paid.
                self.credit -= FRAME_COSTS;
                if flags & END_STREAM != 0 && self.skip == 0 {
                    self.credit -= FRAME_COSTS;
                }
            }
            HEADERS => self.credit += CALL_EARNS,
            RST_STREAM => {
                self.resets -= 1.0;
                self.came += 1;
            }
            SETTINGS if flags & ACK == 0 => self.credit -= SETTINGS_COST,
            _ => self.credit -= FRAME_COSTS,
        }
        self.credit = self.credit.min(MOST_CREDIT);
    }

    /// Adds what time gives.
    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.credit = (self.credit + since * CREDIT_RATE).min(MOST_CREDIT);
        self.resets = (self.resets + since * RESET_RATE).min(MOST_RESETS);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        frame.extend_from_slice(payload);
        frame
    }

    /// How many of `frames`, sent again and again within a second, are taken.
    fn taken(frames: &[Vec<u8>]) -> usize {
        let start = Instant::now();
        let mut meter = Meter::new(0, start);
        let flood = frames.concat();
        (0..100_000)
            .take_while(|&index| {
                let now = start + Duration::from_micros(10 * index);
                meter.read(&flood, now).is_ok()
            })
            .count()
    }

    #[test]
    fn floods_end_and_calls_go_on() {
        const PING: u8 = 6;
        const PRIORITY: u8 = 2;
        const WINDOW_UPDATE: u8 = 8;
        for (kind, payload) in [
            (PING, 8),
            (PRIORITY, 5),
            (WINDOW_UPDATE, 4),
            (DATA, 0),
            (99, 3),
        ] {
            let taken = taken(&[frame(kind, 0, &vec![0; payload])]);
            assert!((10_000..30_000).contains(&taken), "{kind}: {taken}");
        }
        assert!(taken(&[frame(SETTINGS, 0, &[0; 6])]) < 400);
        let call = |data: usize| {
            [
                frame(HEADERS, 4, &[0; 20]),
                frame(DATA, END_STREAM, &vec![0; data]),
                frame(WINDOW_UPDATE, 0, &[0; 4]),
                frame(WINDOW_UPDATE, 0, &[0; 4]),
                frame(PING, 0, &[0; 8]),
            ]
        };
        assert_eq!(taken(&call(10)), 100_000);
        assert_eq!(taken(&call(100_000)), 100_000);
        // A call and its reset, a hundred thousand a second.
        let reset = [frame(HEADERS, 4, &[0; 20]), frame(RST_STREAM, 0, &[0; 4])];
        assert!((16_000..20_000).contains(&taken(&reset)));
    }

    #[test]
    fn a_large_answer_pays_for_the_windows_that_it_needs() {
        let start = Instant::now();
        let mut meter = Meter::new(0, start);
        let updates = [frame(8, 0, &[0; 4]), frame(8, 0, &[0; 4])].concat();
        for _ in 0..100_000 {
            meter.wrote(16 << 10);
            assert_eq!(meter.read(&updates, start), Ok(()));
        }
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let mut bytes = vec![7; 24];
        for length in [0, 3, 300] {
            bytes.extend(frame(DATA, 0, &vec![9; length]));
            bytes.extend(frame(RST_STREAM, 0, &[0; 4]));
        }
        for step in 1..bytes.len() {
            let now = Instant::now();
            let mut meter = Meter::new(24, now);
            for piece in bytes.chunks(step) {
                meter.read(piece, now).unwrap();
            }
            assert_eq!((meter.skip, meter.head_bytes), (0, 0), "{step}");
            assert_eq!(MOST_RESETS - meter.resets, 3.0);
        }
    }
}
