//! Between a stream's messages and what it decides.

use std::time::Duration;

use prost::Message;
use prost_types::Timestamp;

use super::super::{convert, status::part};
use crate::{
    engine::{Head, Outcome, Provenance},
    error::{Error, Kind, Result},
    proto::{
        self, AnalyzeStreamResponse, FrameOutcome, analyze_stream_response::Message as Answer,
        head_result, stream_result,
    },
    stream::{self, Account, Detail, Reason, Word},
};

const NANOSECONDS: i64 = 1_000_000_000;

/// A frame's time in nanoseconds since 1970.
pub(super) fn captured(time: Option<Timestamp>) -> Result<Option<i64>> {
    let Some(Timestamp { seconds, nanos }) = time else {
        return Ok(None);
    };
    let within = (0..NANOSECONDS).contains(&i64::from(nanos));
    let whole = seconds
        .checked_mul(NANOSECONDS)
        .and_then(|whole| whole.checked_add(i64::from(nanos)))
        .filter(|_| within);
    let bad = || {
        let text = "must have 0 to 999999999 nanoseconds and be within 292 years of 1970";
        Error::invalid("frame.capture_time", text)
    };
    whole.map(Some).ok_or_else(bad)
}

/// The same as it came.
fn timestamp(captured: Option<i64>) -> Option<Timestamp> {
    captured.map(|time| Timestamp {
        seconds: time.div_euclid(NANOSECONDS),
        // Less than a second's.
        nanos: time.rem_euclid(NANOSECONDS) as i32,
    })
}

/// What an error of a frame makes of it.
pub(super) fn reason(error: &Error) -> Reason {
    match error.kind() {
        Kind::DeadlineExceeded => Reason::Age,
        Kind::Overloaded => Reason::Overload,
        Kind::RateLimited => Reason::Quota,
        Kind::InvalidImage | Kind::LimitExceeded => Reason::Image,
        Kind::InvalidArgument => Reason::Invalid,
        _ => Reason::Failed,
    }
}

fn outcome(outcome: stream::Outcome) -> FrameOutcome {
    match outcome {
        stream::Outcome::Answered => FrameOutcome::Answered,
        stream::Outcome::Dropped(reason) => match reason {
            Reason::Superseded => FrameOutcome::Superseded,
            Reason::Skipped => FrameOutcome::Skipped,
            Reason::Age => FrameOutcome::TooOld,
            Reason::Overload => FrameOutcome::Overloaded,
            Reason::Quota => FrameOutcome::OverQuota,
            Reason::Image => FrameOutcome::BadImage,
            Reason::Duplicate => FrameOutcome::Duplicate,
            Reason::Invalid => FrameOutcome::Invalid,
            Reason::Failed => FrameOutcome::Failed,
            Reason::Ended => FrameOutcome::StreamEnded,
        },
    }
}

/// What a stream has to say of a frame beside its outcome.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) error: Option<Error>,
    pub(super) provenance: Option<Provenance>,
    /// From its arrival.
    pub(super) took: Duration,
    pub(super) results: u32,
    pub(super) restarted: bool,
}

/// A frame's last word as a message.
pub(super) fn done(word: &Word, said: &Said) -> AnalyzeStreamResponse {
    let own = word.detail.map(|detail| match detail {
        Detail::IdNotRising(last) => {
            let text = "must be above that of the frame before it";
            let error = Error::invalid("frame.id", text);
            error.with("value", word.id).with("last", last)
        }
        Detail::TimeBackwards(_) => Error::invalid(
            "frame.capture_time",
            "is before that of the frame before it",
        ),
    });
    let made = said.provenance.as_ref();
    let made = made.map(|made| convert::provenance(made, "", said.took));
    let made = made.unwrap_or_default();
    answer(Answer::Done(proto::FrameDone {
        frame_id: narrow(word.id),
        capture_time: timestamp(word.captured),
        outcome: outcome(word.outcome).into(),
        error: own.as_ref().or(said.error.as_ref()).map(part),
        results: said.results,
        backbone_rows: made.backbone_rows,
        feature_source: made.feature_source,
        timing: made.timing,
        clips_restarted: said.restarted,
    }))
}

/// The frame that a result is for.
#[derive(Debug, Clone)]
pub(super) struct Of {
    pub(super) id: u64,
    pub(super) captured: Option<i64>,
    /// Frames of the clip, for a head that reads several.
    pub(super) clip: Vec<u64>,
}

/// A head's result as a message; one that is longer than `most_bytes` is an error in its place.
pub(super) fn result(
    of: Of,
    head: &Head,
    outcome: Result<Outcome>,
    most_bytes: usize,
) -> AnalyzeStreamResponse {
    use head_result::Outcome as From;
    use stream_result::Outcome as To;
    let outcome = match outcome
        .map(|found| convert::head_result(head, Ok(found), proto::MaskFormat::Unspecified).outcome)
    {
        Ok(Some(From::Detection(found))) => To::Detection(found),
        Ok(Some(From::Segmentation(found))) => To::Segmentation(found),
        Ok(Some(From::Classification(found))) => To::Classification(found),
        Ok(Some(From::Tensor(found))) => To::Tensor(found),
        Ok(Some(From::Keypoints(found))) => To::Keypoints(found),
        Ok(Some(From::Error(failed))) => To::Error(failed),
        Ok(None) => To::Error(part(&Error::new(Kind::Internal, "a head gave nothing"))),
        Err(failed) => To::Error(part(&failed)),
    };
    let manifest = &head.manifest;
    let name = (manifest.name.as_str(), manifest.version.as_str());
    let message = named(&of, name, outcome);
    let bytes = message.encoded_len();
    if bytes <= most_bytes {
        return message;
    }
    let text = "the result is longer than an answer may be (limits.response_bytes)";
    let too_long = Error::new(Kind::LimitExceeded, text);
    let too_long = too_long.with("value", bytes).with("limit", most_bytes);
    named(&of, name, To::Error(part(&too_long)))
}

/// Adds the numbers of the objects that its detections are, 0 for none.
pub(super) fn set_tracks(message: &mut AnalyzeStreamResponse, ids: Vec<Option<u32>>) {
    if let Some(Answer::Result(result)) = &mut message.message
        && let Some(stream_result::Outcome::Detection(_)) = result.outcome
    {
        result.track_ids = ids.into_iter().map(Option::unwrap_or_default).collect();
    }
}

/// That a head of this name has no result.
pub(super) fn failed(of: &Of, head: &str, why: &Error) -> AnalyzeStreamResponse {
    let outcome = stream_result::Outcome::Error(part(why));
    named(of, (head, ""), outcome)
}

fn named(
    of: &Of,
    (head, version): (&str, &str),
    outcome: stream_result::Outcome,
) -> AnalyzeStreamResponse {
    answer(Answer::Result(proto::StreamResult {
        frame_id: narrow(of.id),
        capture_time: timestamp(of.captured),
        head: head.to_owned(),
        version: version.to_owned(),
        clip_frame_ids: of.clip.iter().copied().map(narrow).collect(),
        track_ids: Vec::new(),
        outcome: Some(outcome),
    }))
}

/// How many frames have ended in which way.
pub(super) fn counts(account: &Account) -> Vec<proto::FrameCount> {
    let dropped = Reason::ALL.map(|reason| {
        let frames = account.dropped(reason);
        (stream::Outcome::Dropped(reason), frames)
    });
    let all = std::iter::once((stream::Outcome::Answered, account.answered())).chain(dropped);
    all.filter(|(_, frames)| *frames > 0)
        .map(|(ended, frames)| proto::FrameCount {
            outcome: outcome(ended).into(),
            frames: narrow(frames),
        })
        .collect()
}

/// A number of 32 bits, as all of the protocol's are; the largest stands for those beyond.
pub(super) fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(super) fn answer(message: Answer) -> AnalyzeStreamResponse {
    AnalyzeStreamResponse {
        message: Some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_are() {
        for (seconds, nanos) in [
            (0, 0),
            (1_764_000_000, 123_456_789),
            (-1, 999_999_999),
            (-5, 0),
        ] {
            let time = Some(Timestamp { seconds, nanos });
            assert_eq!(timestamp(captured(time).unwrap()), time);
        }
        assert_eq!(captured(None).unwrap(), None);
        for (seconds, nanos) in [
            (0, -1),
            (0, 1_000_000_000),
            (i64::MAX, 0),
            (9_300_000_000, 0),
        ] {
            let refused = captured(Some(Timestamp { seconds, nanos })).unwrap_err();
            assert_eq!(refused.field(), Some("frame.capture_time"));
        }
    }
}
