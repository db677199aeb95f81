//! A camera: sends frames and hears what becomes of them.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use frostline::{
    client::{Client, encoded},
    proto::{
        self, AnalyzeStreamRequest, AnalyzeStreamResponse, FrameOutcome, StreamSettings,
        analyze_stream_request::Message as Asked, analyze_stream_response::Message as Answer,
    },
};
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tonic_types::{RpcStatusExt, pb};

/// Longest wait for an answer, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A stream, from its caller's side.
pub(super) struct Camera {
    pub(super) out: mpsc::Sender<AnalyzeStreamRequest>,
    pub(super) answers: Streaming<AnalyzeStreamResponse>,
    started: Option<proto::StreamStarted>,
    results: BTreeMap<u32, Vec<proto::StreamResult>>,
    pub(super) status: Vec<proto::StreamStatus>,
    /// Last words so far.
    pub(super) done: Vec<proto::FrameDone>,
}

/// A frame that has had its last word.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) results: Vec<proto::StreamResult>,
    pub(super) done: proto::FrameDone,
}

impl Frame {
    pub(super) fn of(&self, head: &str) -> &proto::StreamResult {
        self.results.iter().find(|r| r.head == head).unwrap()
    }
}

/// The stable reason of an error and the field at fault.
pub(super) fn told(error: &pb::Status) -> (String, String) {
    let info = error.get_details_error_info();
    let info = info.map(|info| {
        let field = info.metadata.get("field").cloned();
        (info.reason, field.unwrap_or_default())
    });
    info.unwrap_or_default()
}

pub(super) fn head(name: &str) -> proto::StreamHead {
    proto::StreamHead {
        name: name.to_owned(),
        ..Default::default()
    }
}

pub(super) fn settings(heads: Vec<proto::StreamHead>) -> StreamSettings {
    StreamSettings {
        heads,
        policy: proto::FramePolicy::Wait.into(),
        ..Default::default()
    }
}

pub(super) fn start(name: &str, settings: StreamSettings) -> AnalyzeStreamRequest {
    let start = proto::StreamStart {
        name: name.to_owned(),
        settings: Some(settings),
    };
    ask(Asked::Start(start))
}

pub(super) fn ask(message: Asked) -> AnalyzeStreamRequest {
    AnalyzeStreamRequest {
        message: Some(message),
    }
}

/// When the frame of this number was taken: 40 ms after the one before.
pub(super) fn captured(id: u32) -> Option<Timestamp> {
    let millis = 40 * u64::from(id);
    Some(Timestamp {
        seconds: 1_700_000_000 + (millis / 1000) as i64,
        nanos: (millis % 1000) as i32 * 1_000_000 + 7,
    })
}

pub(super) fn frame(id: u32, image: Option<proto::Image>) -> AnalyzeStreamRequest {
    ask(Asked::Frame(proto::StreamFrame {
        id,
        capture_time: captured(id),
        image,
    }))
}

impl Camera {
    /// A call whose first message is yet to come.
    pub(super) async fn call(client: &Client) -> Result<Self, Status> {
        let (out, messages) = mpsc::channel(64);
        let mut vision = client.vision.clone();
        let answers = vision.analyze_stream(ReceiverStream::new(messages)).await?;
        Ok(Self {
            out,
            answers: answers.into_inner(),
            started: None,
            results: BTreeMap::new(),
            status: Vec::new(),
            done: Vec::new(),
        })
    }

    pub(super) async fn open(client: &Client, settings: StreamSettings) -> Result<Self, Status> {
        Self::named(client, "", settings).await
    }

    pub(super) async fn named(
        client: &Client,
        name: &str,
        settings: StreamSettings,
    ) -> Result<Self, Status> {
        let mut camera = Self::call(client).await?;
        camera.ask(start(name, settings)).await;
        match camera.next().await? {
            Some(Answer::Started(started)) => camera.started = Some(started),
            other => panic!("{other:?}"),
        }
        Ok(camera)
    }

    pub(super) fn started(&self) -> &proto::StreamStarted {
        self.started.as_ref().unwrap()
    }

    pub(super) async fn ask(&self, message: AnalyzeStreamRequest) {
        // One whose call has ended is told so by its answers.
        let _ = self.out.send(message).await;
    }

    /// Sends an image file.
    pub(super) async fn send(&self, id: u32, image: Bytes) {
        self.ask(frame(id, Some(encoded(image)))).await;
    }

    /// Sends an image.
    pub(super) async fn show(&self, id: u32, image: proto::Image) {
        self.ask(frame(id, Some(image))).await;
    }

    /// The next answer; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Answer>, Status> {
        let next = tokio::time::timeout(LIMIT, self.answers.message());
        let message = next.await.expect("no answer comes")?;
        let Some(message) = message.map(|message| message.message.unwrap()) else {
            return Ok(None);
        };
        match &message {
            Answer::Result(result) => {
                let done = self
                    .done
                    .iter()
                    .find(|done| done.frame_id == result.frame_id);
                // A number that comes twice has two last words.
                let over = done.is_some_and(|done| done.outcome() == FrameOutcome::Answered);
                assert!(!over, "a result after the last word: {result:?}");
                let results = self.results.entry(result.frame_id).or_default();
                results.push(result.clone());
            }
            Answer::Done(done) => self.done.push(done.clone()),
            Answer::Status(status) => self.status.push(status.clone()),
            Answer::Started(_) | Answer::Updated(_) => {}
        }
        Ok(Some(message))
    }

    /// Reads on until the frame has its last word.
    pub(super) async fn frame(&mut self, id: u32) -> Frame {
        loop {
            if let Some(at) = self.done.iter().rposition(|done| done.frame_id == id) {
                let mut results = self.results.remove(&id).unwrap_or_default();
                results.sort_by(|a, b| a.head.cmp(&b.head));
                let done = self.done[at].clone();
                return Frame { results, done };
            }
            let next = self.next().await.unwrap();
            assert!(next.is_some(), "it ended before the frame {id}");
        }
    }

    /// What becomes of frames until so many have had their last word, by number.
    pub(super) async fn outcomes(&mut self, count: usize) -> BTreeMap<u32, FrameOutcome> {
        while self.done.len() < count {
            assert!(self.next().await.unwrap().is_some(), "{:?}", self.done);
        }
        let all = self.done.iter();
        all.map(|done| (done.frame_id, done.outcome())).collect()
    }

    pub(super) async fn update(&mut self, settings: StreamSettings) -> proto::StreamUpdated {
        let update = proto::StreamUpdate {
            settings: Some(settings),
        };
        self.ask(ask(Asked::Update(update))).await;
        loop {
            if let Some(Answer::Updated(updated)) = self.next().await.unwrap() {
                return updated;
            }
        }
    }

    /// Says that no more frames come, and reads to the end; the last status, which accounts for every frame.
    pub(super) async fn end(&mut self) -> Result<proto::StreamStatus, Status> {
        self.ask(ask(Asked::End(proto::StreamEnd {}))).await;
        self.rest().await
    }

    /// Reads to the end.
    pub(super) async fn rest(&mut self) -> Result<proto::StreamStatus, Status> {
        while self.next().await?.is_some() {}
        let status = self
            .status
            .last()
            .cloned()
            .expect("a stream ends with its status");
        let ended: u32 = status.frames.iter().map(|count| count.frames).sum();
        assert_eq!(status.frames_offered, ended, "{status:?}");
        assert_eq!(ended, self.done.len() as u32, "{status:?}");
        for count in &status.frames {
            let own = self
                .done
                .iter()
                .filter(|done| done.outcome == count.outcome);
            assert_eq!(own.count() as u32, count.frames, "{status:?}");
        }
        Ok(status)
    }
}
