//! Heads come, change and go while serving.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use frostline::{
    client::{Client, raw},
    metrics::Sample,
    proto::{self, head_result::Outcome as Answer},
    repository::Repository,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::{
    common::graphs::{HeadGraph, TOUCHY, expected_mean, pixels, write_head},
    support::{Running, one_lane},
};

pub(crate) const SIZE: [u32; 2] = [64, 64];

pub(crate) struct Site {
    pub(crate) folder: TempDir,
    pub(crate) backbone: String,
    pub(crate) server: Running,
}

impl Site {
    /// A server of a repository with the head `mean` of version 1.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backbone = TOUCHY.write(folder.path());
        write(folder.path(), &backbone, "mean", 1);
        let repository = Repository::open(folder.path()).unwrap();
        let server = Running::start_of(&repository, one_lane()).await;
        Self {
            folder,
            backbone,
            server,
        }
    }

    fn write(&self, name: &str, version: u32) {
        write(self.folder.path(), &self.backbone, name, version);
    }

    fn break_head(&self, name: &str) {
        let (root, graph) = (self.folder.path(), HeadGraph::Broken);
        write_head(root, name, "9", &self.backbone, SIZE, &graph);
    }
}

/// A head whose answers tell its version: the mean times it.
pub(crate) fn write(root: &Path, backbone: &str, name: &str, version: u32) {
    let graph = HeadGraph::Mean(version as f32);
    write_head(root, name, &version.to_string(), backbone, SIZE, &graph);
}

/// The version that answered, which the number must bear out.
pub(crate) async fn ask(client: &mut Client, head: &str, level: u8) -> Result<u32, Status> {
    let image = raw(SIZE[1], SIZE[0], pixels(SIZE, [level, 0, level], level));
    let request = proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(image)),
        heads: vec![head.to_owned()],
        ..Default::default()
    };
    let answer = client.vision.analyze(request).await?.into_inner();
    let result = &answer.results[0];
    let Some(Answer::Tensor(tensors)) = &result.outcome else {
        panic!("no tensors: {result:?}")
    };
    let got = f32::from_le_bytes(tensors.outputs[0].data.as_ref().try_into().unwrap());
    let version: u32 = result.version.parse().unwrap();
    let mean = expected_mean(SIZE, [level, 0, level], level);
    let want = mean * version as f32;
    assert!(
        (got - want).abs() < 1e-2,
        "version {version}: {got}, not {want}"
    );
    Ok(version)
}

/// Waits until this version answers, or nothing does.
pub(crate) async fn until(client: &mut Client, head: &str, want: Option<u32>) {
    let limit = Duration::from_secs(60);
    let turn = async {
        while ask(client, head, 10).await.ok() != want {
            tokio::task::yield_now().await;
        }
    };
    let done = tokio::time::timeout(limit, turn).await;
    assert!(done.is_ok(), "{head} never became {want:?}");
}

async fn load(client: &mut Client, name: &str) -> Result<String, Status> {
    let request = proto::LoadHeadRequest {
        name: name.to_owned(),
    };
    let head = client.model.load_head(request).await?.into_inner().head;
    Ok(head.unwrap().version)
}

async fn unload(client: &mut Client, name: &str) -> Result<(), Status> {
    let request = proto::UnloadHeadRequest {
        name: name.to_owned(),
    };
    client.model.unload_head(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_added_replaced_and_removed_by_call() {
    let site = Site::new().await;
    let mut client = site.server.client().await;
    assert_eq!(ask(&mut client, "mean", 10).await.unwrap(), 1);

    site.write("mean", 2);
    assert_eq!(
        ask(&mut client, "mean", 11).await.unwrap(),
        1,
        "not told yet"
    );
    assert_eq!(load(&mut client, "mean").await.unwrap(), "2");
    assert_eq!(ask(&mut client, "mean", 12).await.unwrap(), 2);

    site.write("other", 5);
    let unknown = ask(&mut client, "other", 10).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(load(&mut client, "other").await.unwrap(), "5");
    assert_eq!(ask(&mut client, "other", 10).await.unwrap(), 5);

    unload(&mut client, "mean").await.unwrap();
    let gone = ask(&mut client, "mean", 10).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let again = unload(&mut client, "mean").await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    for name in ["no-such-head", "", "../mean", ".hidden", "a/b", "mean\0"] {
        let status = load(&mut client, name).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{name:?}: {status:?}");
    }
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_load_leaves_the_old_one_and_says_why() {
    let site = Site::new().await;
    let mut client = site.server.client().await;
    site.break_head("mean");
    let status = load(&mut client, "mean").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(
        status.message().contains("heads/mean/head.onnx"),
        "{status:?}"
    );
    assert_eq!(ask(&mut client, "mean", 10).await.unwrap(), 1);

    // A foreign backbone, and a graph other than its hash says.
    let other = "0".repeat(64);
    let root = site.folder.path();
    write_head(root, "mean", "3", &other, SIZE, &HeadGraph::Mean(3.0));
    let status = load(&mut client, "mean").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("backbone"), "{status:?}");
    site.write("mean", 4);
    std::fs::write(root.join("heads/mean/head.onnx"), b"other").unwrap();
    let status = load(&mut client, "mean").await.unwrap_err();
    assert!(status.message().contains("sha256"), "{status:?}");
    assert_eq!(ask(&mut client, "mean", 11).await.unwrap(), 1);
    site.server.stop().await;
}

/// Whether the head's newest version serves, as a scrape tells it.
fn current(site: &Site, head: &str) -> Option<bool> {
    current_of(&site.server, head)
}

pub(crate) fn current_of(server: &Running, head: &str) -> Option<bool> {
    let metrics = &server.engine.config().metrics;
    let text = metrics.render(Sample::default()).unwrap();
    let series = format!("frostline_head_current{{head=\"{head}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series))?;
    Some(value == "1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_tells_whether_the_newest_version_of_a_head_serves() {
    let site = Site::new().await;
    let client = &mut site.server.client().await;
    assert_eq!(current(&site, "mean"), Some(true), "from the start");
    site.break_head("mean");
    load(client, "mean").await.unwrap_err();
    assert_eq!(ask(client, "mean", 10).await.unwrap(), 1);
    assert_eq!(current(&site, "mean"), Some(false), "the old one serves");
    site.write("mean", 2);
    load(client, "mean").await.unwrap();
    assert_eq!(current(&site, "mean"), Some(true));
    unload(client, "mean").await.unwrap();
    assert_eq!(current(&site, "mean"), None, "nobody wants it to serve");
    // One that never loaded, and names that come from anybody.
    site.break_head("new");
    load(client, "new").await.unwrap_err();
    assert_eq!(current(&site, "new"), Some(false));
    load(client, "nothing").await.unwrap_err();
    assert_eq!(current(&site, "nothing"), None);
    let limit = Duration::from_secs(20);
    site.server.engine.watch(Duration::from_millis(10)).unwrap();
    std::fs::remove_dir_all(site.folder.path().join("heads/new")).unwrap();
    let gone = async {
        while current(&site, "new").is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(limit, gone)
        .await
        .expect("its folder is gone");
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_is_followed() {
    let site = Site::new().await;
    let client = &mut site.server.client().await;
    site.server.engine.watch(Duration::from_millis(10)).unwrap();
    site.write("mean", 2);
    until(client, "mean", Some(2)).await;
    site.write("new", 3);
    until(client, "new", Some(3)).await;
    // A broken one is passed over; the next good one is taken.
    site.break_head("mean");
    site.write("new", 4);
    until(client, "new", Some(4)).await;
    assert_eq!(ask(client, "mean", 10).await.unwrap(), 2);
    site.write("mean", 5);
    until(client, "mean", Some(5)).await;
    std::fs::remove_dir_all(site.folder.path().join("heads/new")).unwrap();
    until(client, "new", None).await;
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_fail_no_call() {
    let site = Site::new().await;
    let done = Arc::new(AtomicBool::new(false));
    let client = site.server.client().await;
    let callers: Vec<_> = (0..4_u8)
        .map(|caller| {
            let (mut client, done) = (client.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let (mut calls, mut last) = (0_u32, 0);
                while !done.load(Ordering::Relaxed) {
                    let level = caller * 50 + (calls % 40) as u8;
                    let version = ask(&mut client, "mean", level).await.unwrap();
                    assert!(version >= last, "an older head came back");
                    (last, calls) = (version, calls + 1);
                }
                calls
            })
        })
        .collect();
    let mut operator = client.clone();
    for version in 2..=100 {
        site.write("mean", version);
        let loaded = load(&mut operator, "mean").await.unwrap();
        assert_eq!(loaded, version.to_string());
    }
    done.store(true, Ordering::Relaxed);
    let mut calls = Vec::new();
    for caller in callers {
        calls.push(caller.await.unwrap());
    }
    assert!(calls.iter().all(|&calls| calls > 0), "{calls:?}");
    site.server.settled().await;
    site.server.stop().await;
}
