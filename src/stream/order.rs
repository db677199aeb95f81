//! One head's results in the order of their frames, though they are ready in another.

use std::collections::VecDeque;

/// Results that wait for those of frames before theirs.
#[derive(Debug)]
pub struct Order<T> {
    slots: VecDeque<(u64, Slot<T>)>,
}

#[derive(Debug)]
enum Slot<T> {
    Pending,
    Ready(T),
    Gone,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
        }
    }
}

impl<T> Order<T> {
    /// A result of the frame `ordinal` will come, or not. Frames are announced in their order.
    pub fn expect(&mut self, ordinal: u64) {
        self.slots.push_back((ordinal, Slot::Pending));
    }

    /// The frame's result is there. Those whose turn it is go to `out`.
    pub fn ready(&mut self, ordinal: u64, result: T, out: &mut Vec<(u64, T)>) {
        self.set(ordinal, Slot::Ready(result), out);
    }

    /// The frame has no result, or none that is to be given any more. Those that it held up go to `out`.
    pub fn gone(&mut self, ordinal: u64, out: &mut Vec<(u64, T)>) {
        self.set(ordinal, Slot::Gone, out);
    }

    fn set(&mut self, ordinal: u64, to: Slot<T>, out: &mut Vec<(u64, T)>) {
        let slot = self.slots.iter_mut().find(|(own, _)| *own == ordinal);
        match (slot, &to) {
            (Some((_, slot @ Slot::Pending)), _)
            | (Some((_, slot @ Slot::Ready(_))), Slot::Gone) => {
                *slot = to;
            }
            _ => {}
        }
        let settled = |(_, slot): &(u64, Slot<T>)| !matches!(slot, Slot::Pending);
        while self.slots.front().is_some_and(settled)
            && let Some((ordinal, slot)) = self.slots.pop_front()
        {
            if let Slot::Ready(result) = slot {
                out.push((ordinal, result));
            }
        }
    }

    /// Whether nothing is awaited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_wait_for_frames_before_theirs_and_not_for_those_that_are_gone() {
        let mut order = Order::default();
        let mut out = Vec::new();
        (1..=4).for_each(|ordinal| order.expect(ordinal));
        order.ready(2, "b", &mut out);
        order.ready(4, "d", &mut out);
        assert!(out.is_empty());
        order.gone(1, &mut out);
        // Once gone it does not come back.
        order.ready(1, "a", &mut out);
        assert_eq!(std::mem::take(&mut out), [(2, "b")]);
        order.expect(5);
        order.ready(5, "e", &mut out);
        order.gone(5, &mut out);
        order.gone(3, &mut out);
        assert_eq!(out, [(4, "d")]);
        assert!(order.is_empty());
    }
}
