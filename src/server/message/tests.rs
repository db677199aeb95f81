use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;

use super::{
    super::{budget::Budget, party::Party},
    *,
};

fn over(body: Body, framing: Framing, most_bytes: usize, budget: &Arc<Budget>) -> Message {
    let bounds = Bounds {
        most_bytes,
        read: Duration::from_secs(1),
    };
    Message::new(body, framing, false, bounds, budget.account(Party::Local))
}

fn message(framing: Framing) -> Message {
    let budget = Budget::new(1 << 20, Arc::default());
    over(Body::empty(), framing, 100, &budget)
}

#[test]
fn messages_are_followed_however_they_are_cut() {
    let mut bytes = Vec::new();
    for length in [0_u8, 7, 100] {
        bytes.extend_from_slice(&[0, 0, 0, 0, length]);
        bytes.extend(std::iter::repeat_n(9, usize::from(length)));
    }
    for step in 1..=bytes.len() {
        let mut message = message(Framing::Stream);
        for piece in bytes.chunks(step) {
            message.follow(piece).unwrap();
        }
        assert_eq!((message.messages, message.waits()), (3, false), "{step}");
    }
}

#[tokio::test]
async fn a_long_message_is_handed_on_after_its_prefix() {
    for (length, expected) in [(ROOM, vec![PREFIX, ROOM]), (9, vec![PREFIX + 9])] {
        // Bytes of a prefix are text as long as the length is.
        let whole = String::from_utf8(
            [&[0, 0, 0], &length.to_be_bytes()[6..], &vec![b'x'; length]].concat(),
        );
        let whole = whole.unwrap();
        let body = Body::new(whole.clone());
        let budget = Budget::new(1 << 20, Arc::default());
        let mut message = over(body, Framing::One, ROOM, &budget);
        let (mut frames, mut bytes) = (Vec::new(), Vec::new());
        while !message.is_end_stream() {
            let frame = std::future::poll_fn(|context| Pin::new(&mut message).poll_frame(context));
            let data = frame.await.unwrap().unwrap().into_data().unwrap();
            frames.push(data.len());
            bytes.extend_from_slice(&data);
        }
        assert_eq!((frames, bytes), (expected, whole.into_bytes()));
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_its_bytes() {
    let refused = message(Framing::One)
        .follow(&[0, 0, 0, 0, 101])
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let details = tonic_types::StatusExt::get_error_details(&refused);
    let told = &details.error_info().unwrap().metadata;
    assert_eq!((&*told["value"], &*told["limit"]), ("101", "100"));
}

#[test]
fn one_message_waits_for_its_end_and_a_stream_for_the_rest_of_what_has_begun() {
    let mut one = message(Framing::One);
    one.follow(&[0, 0, 0, 0, 1, 5]).unwrap();
    assert!(one.waits());
    let mut stream = message(Framing::Stream);
    assert!(stream.waits());
    stream.follow(&[0, 0, 0, 0, 1, 5, 0]).unwrap();
    assert!(stream.waits());
    stream.follow(&[0, 0, 0, 0]).unwrap();
    assert!(!stream.waits());
}

/// A body of pieces, a frame each, and the bytes of those that came.
struct Cut(VecDeque<Bytes>, Arc<AtomicUsize>);

impl HttpBody for Cut {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(|piece| {
            self.1.fetch_add(piece.len(), Ordering::Relaxed);
            Ok(Frame::data(piece))
        }))
    }
}

/// What `message` hands on next.
fn next(message: &mut Message) -> Option<Bytes> {
    let mut context = Context::from_waker(std::task::Waker::noop());
    match Pin::new(message).poll_frame(&mut context) {
        Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
        Poll::Pending => panic!("it waits"),
    }
}

proptest! {
    #[test]
    fn a_reader_makes_room_for_no_more_than_twice_what_came(
        lengths in prop::collection::vec(prop_oneof![0_usize..2000, 200_000_usize..900_000], 1..4),
        step in 1_000_usize..200_000,
    ) {
        let mut whole = Vec::new();
        let mut starts = Vec::new();
        for &length in &lengths {
            starts.push(whole.len());
            whole.push(0);
            whole.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
            whole.extend((0..length).map(|index| index as u8));
        }
        let whole = Bytes::from(whole);
        let cuts = (0..whole.len()).step_by(step);
        let cuts = cuts.map(|at| whole.slice(at..whole.len().min(at + step)));
        let came = Arc::new(AtomicUsize::new(0));
        let body = Body::new(Cut(cuts.collect(), Arc::clone(&came)));
        let budget = Budget::new(16 << 20, Arc::default());
        let mut message = over(body, Framing::Stream, 1 << 20, &budget);
        let mut handed = Vec::new();
        while let Some(data) = next(&mut message) {
            handed.extend_from_slice(&data);
            let came = came.load(Ordering::Relaxed);
            for (&start, &length) in starts.iter().zip(&lengths) {
                let room = handed.len() >= start + PREFIX && length > TRUSTED;
                prop_assert!(!room || came - start >= length / 2);
            }
            // What came, and the room that its reader makes.
            prop_assert!(budget.held() <= 3 * came + TRUSTED);
        }
        prop_assert_eq!(handed, whole);
        prop_assert_eq!(budget.held(), 0);
    }
}

#[test]
fn what_ends_within_a_message_that_is_held_back_is_refused() {
    let budget = Budget::new(1 << 20, Arc::default());
    let begun = [&[0, 0, 8, 0, 0][..], &[7; 1000]].concat();
    let body = Body::new(Cut([begun.into()].into(), Arc::default()));
    let mut message = over(body, Framing::One, 1 << 20, &budget);
    let mut context = Context::from_waker(std::task::Waker::noop());
    let Poll::Ready(Some(Err(refused))) = Pin::new(&mut message).poll_frame(&mut context) else {
        panic!("it was taken");
    };
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}
