//! The server as a process of its own: what its log says, the signals that it takes, and where a caller is seen.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use frostline::{
    client::{Client, Credentials, encoded, raw},
    proto,
    server::{Grant, new_token},
};
use opentelemetry_proto::tonic::{common::v1::any_value::Value as Attribute, trace::v1::Span};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    observe::{http, scrape},
    support::png,
    traces::{collector, hex},
};

/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

/// `frostline serve` on free ports, with its log as it is written.
pub(crate) struct Process {
    pub(crate) child: Child,
    /// Lines that were passed over while another was awaited.
    seen: Vec<Value>,
    log: mpsc::UnboundedReceiver<Value>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// The line that said that it serves.
    pub(crate) ready: Value,
}

impl Process {
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_frostline"));
        Self::start_as(command, arguments).await
    }

    /// As [`Process::start`], with at most `soft` open files, which it may raise to `hard`.
    pub(crate) async fn start_with_files(soft: u64, hard: u64, arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
        shell.args(["-c", &limited, env!("CARGO_BIN_EXE_frostline")]);
        Self::start_as(shell, arguments).await
    }

    pub(crate) async fn start_as(mut command: Command, arguments: &[&str]) -> Self {
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        Self::start_with_own(command, arguments).await
    }

    /// As [`Process::start_as`], of a command that serves already.
    pub(crate) async fn start_with_own(mut command: Command, arguments: &[&str]) -> Self {
        let mut child = command
            .args(["--admin", "127.0.0.1:0", "--set", "telemetry.format=json"])
            // Unless an argument says otherwise: a trial may find one way the faster today and another tomorrow.
            .args(["--set", "device.device=cpu"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Self {
            child,
            seen: Vec::new(),
            log,
            address: nowhere,
            admin: nowhere,
            ready: Value::Null,
        };
        let address = |line: &Value| line["address"].as_str().unwrap().parse().unwrap();
        process.admin = address(&process.says("admin port").await);
        process.ready = process.says("ready").await;
        process.address = address(&process.ready);
        process
    }

    /// The next line with this message.
    pub(crate) async fn says(&mut self, message: &str) -> Value {
        let line = async {
            loop {
                let line = self.log.recv().await.expect("the process is gone");
                if line["message"] == message {
                    return line;
                }
                self.seen.push(line);
            }
        };
        let line = timeout(LIMIT, line).await;
        line.unwrap_or_else(|_| panic!("it does not say {message:?}"))
    }

    /// The lines that were passed over while others were awaited.
    pub(crate) fn take_seen(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.seen)
    }

    pub(crate) async fn client(&self, token: Option<String>) -> Client {
        let credentials = Credentials {
            token,
            ..Credentials::default()
        };
        Client::connect_with(&format!("http://{}", self.address), &credentials)
            .await
            .unwrap()
    }

    /// Stops it; the rest of its log.
    pub(crate) async fn stop(mut self) -> Vec<Value> {
        self.signal(Signal::TERM);
        let mut lines = Vec::new();
        let rest = async {
            while let Some(line) = self.log.recv().await {
                lines.push(line);
            }
        };
        timeout(LIMIT, rest).await.expect("it does not end");
        assert!(self.ends().await.success());
        lines
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    async fn ends(mut self) -> ExitStatus {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, ended).await.expect("it does not end")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, or a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A call with its number.
fn detect(number: &str) -> tonic::Request<proto::DetectRequest> {
    let mut request = tonic::Request::new(proto::DetectRequest {
        image: Some(encoded(png(64, 64, 1))),
        ..Default::default()
    });
    let metadata = request.metadata_mut();
    metadata.insert("x-request-id", number.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_filter_changes_while_serving() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("frostline.toml");
    let configure = |filter: &str| {
        fs::write(&file, format!("[telemetry]\nlog = \"{filter}\"\n")).unwrap();
    };
    configure("info");
    let mut process = Process::start(&["--config", file.to_str().unwrap()]).await;
    let mut client = process.client(None).await;
    let mut call = async |number| client.vision.detect(detect(number)).await.unwrap();
    let number = |line: &Value| line["span"]["request_id"].as_str().unwrap().to_owned();

    // Calls that end well are told of at debug, so this one is not; the next one is the first that is.
    call("untold-1").await;
    let (admin, each) = (process.admin, "info,frostline::call=debug");
    let answer = http(admin, "PUT", "/log", each).await;
    assert_eq!(answer, (200, each.to_owned()));
    call("told-1").await;
    assert_eq!(number(&process.says("ended").await), "told-1");
    assert_eq!(http(admin, "PUT", "/log", "frostline=loud").await.0, 400);
    assert_eq!(http(admin, "GET", "/log", "").await.1, each);

    // A hangup takes the configured filter, as its file says now.
    process.signal(Signal::HUP);
    let again = process.says("the log's filter was read again").await;
    assert_eq!(again["filter"], "info");
    call("untold-2").await;
    configure(each);
    process.signal(Signal::HUP);
    let again = process.says("the log's filter was read again").await;
    assert_eq!(again["filter"], each);
    call("told-2").await;
    assert_eq!(number(&process.says("ended").await), "told-2");

    // What is no filter changes nothing.
    configure("frostline=loud");
    process.signal(Signal::HUP);
    let stays = process.says("the log's filter stays").await;
    assert!(stays["error"].as_str().unwrap().contains("loud"), "{stays}");
    call("told-3").await;
    assert_eq!(number(&process.says("ended").await), "told-3");
    process.signal(Signal::TERM);
    assert!(process.ends().await.success());
}

/// Ranges of the cores that each lane of a process may run on.
fn lanes(pid: u32) -> Vec<Vec<(u32, u32)>> {
    let process = procfs::process::Process::new(i32::try_from(pid).unwrap()).unwrap();
    let threads = process.tasks().unwrap().map(|task| task.unwrap());
    let status = threads.map(|thread| thread.status().unwrap());
    status
        .filter(|status| status.name.starts_with("lane-"))
        .map(|status| status.cpus_allowed_list.unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_are_as_many_as_the_cores_have_one_each() {
    let own = procfs::process::Process::myself().unwrap();
    let all = own.status().unwrap().cpus_allowed_list.unwrap();
    let cores: Vec<u32> = all.iter().flat_map(|(from, to)| *from..=*to).collect();
    for (count, one_each) in [(cores.len(), true), (cores.len() + 1, false)] {
        let setting = format!("engine.lanes={count}");
        let process = Process::start(&["--set", &setting]).await;
        let mut allowed = lanes(process.child.id());
        allowed.sort_unstable();
        let expected: Vec<_> = match one_each {
            true => cores.iter().map(|core| vec![(*core, *core)]).collect(),
            false => vec![all.clone(); count],
        };
        assert_eq!(allowed, expected, "{count} lanes");
        process.signal(Signal::TERM);
        assert!(process.ends().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_follow_what_a_pod_asked_for_and_keep_to_no_core_that_is_shared() {
    let own = procfs::process::Process::myself().unwrap();
    let all = own.status().unwrap().cpus_allowed_list.unwrap();
    let cores: u32 = all.iter().map(|(from, to)| to - from + 1).sum();
    // As Kubernetes starts it, with the request as the chart passes it: less than the node has, and more.
    for (asked, expected) in [("1", 1), ("1000", cores as usize)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
        command.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        command.env("FROSTLINE_ENGINE_CORES", asked);
        let process = Process::start_as(command, &[]).await;
        assert_eq!(
            lanes(process.child.id()),
            vec![all.clone(); expected],
            "{asked}"
        );
        let text = scrape(process.admin).await;
        assert!(
            text.contains(&format!("\nfrostline_lanes {expected}")),
            "{text}"
        );
        process.signal(Signal::TERM);
        assert!(process.ends().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_at_rest_gives_back_what_its_busy_time_took() {
    gives_back_at_rest(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_threads_gives_back_what_its_busy_time_took() {
    gives_back_at_rest(6).await;
}

async fn gives_back_at_rest(threads: usize) {
    // Frames of a large camera, all at once, and no more than one caller may have under way.
    const SIDE: u32 = 1600;
    const CALLS: usize = 10;
    const FRAMES: u64 = (SIDE * SIDE * 3) as u64 * CALLS as u64 / 1024;
    let threads = format!("server.threads={threads}");
    let process = Process::start(&["--set", &threads]).await;
    let pid = i32::try_from(process.child.id()).unwrap();
    let status = || procfs::process::Process::new(pid).unwrap().status();
    // KiB, as the kernel counts.
    let resident = || status().unwrap().vmrss.unwrap();
    // Each on a connection of its own, so that every thread has some.
    let mut clients = Vec::new();
    for _ in 0..CALLS {
        clients.push(process.client(None).await);
    }
    let before = resident();
    let calls = clients
        .into_iter()
        .zip(0..CALLS)
        .map(|(mut client, number)| {
            let frame = vec![number as u8; (SIDE * SIDE * 3) as usize];
            let request = proto::DetectRequest {
                image: Some(raw(SIDE, SIDE, frame.into())),
                ..Default::default()
            };
            tokio::spawn(async move { client.vision.detect(request).await })
        });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let peak = status().unwrap().vmhwm.unwrap();
    assert!(peak > before + FRAMES / 2, "{before} KiB, then {peak}");
    let given_back = async {
        while resident() > before + FRAMES / 8 {
            tokio::task::yield_now().await;
        }
    };
    let given_back = timeout(LIMIT, given_back).await;
    given_back.unwrap_or_else(|_| panic!("{before} KiB, then {peak}, and {} now", resident()));
    process.signal(Signal::TERM);
    assert!(process.ends().await.success());
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let found = span.attributes.iter().find(|a| a.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Attribute::StringValue(text) => Some(text),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_calls_is_seen_in_the_log_the_metrics_and_the_trace() {
    let (endpoint, mut spans) = collector().await;
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let (token, entry) = new_token("camera-7", Grant::default()).unwrap();
    fs::write(
        &keys,
        format!("[[key]]\n{}", toml::to_string(&entry).unwrap()),
    )
    .unwrap();
    let settings = [
        format!("auth.keys={}", keys.display()),
        format!("telemetry.traces={endpoint}"),
        "telemetry.trace_ratio=1.0".to_owned(),
        "telemetry.log=info,frostline::call=debug".to_owned(),
    ];
    let settings: Vec<_> = settings
        .iter()
        .flat_map(|setting| ["--set", setting])
        .collect();
    let mut process = Process::start(&settings).await;
    let mut client = process.client(Some(token)).await;
    client.vision.detect(detect("order-17")).await.unwrap();

    let line = process.says("ended").await;
    let span = &line["span"];
    assert_eq!(span["identity"], "camera-7", "{line}");
    assert_eq!(span["request_id"], "order-17", "{line}");
    assert_eq!(line["code"], "OK", "{line}");

    let admin = process.admin;
    let counted = async {
        let of = |line: &str| {
            line.starts_with("frostline_device_seconds_total{")
                && line.contains(r#"identity="camera-7""#)
        };
        while !scrape(admin).await.lines().any(of) {
            tokio::task::yield_now().await;
        }
    };
    let counted = timeout(LIMIT, counted).await;
    counted.expect("its device time is nobody's");

    let traced = async {
        loop {
            let span = spans.recv().await.unwrap();
            if span.name == "frostline.v1.VisionService/Detect" {
                return span;
            }
        }
    };
    let traced = timeout(LIMIT, traced).await.expect("no span came");
    assert_eq!(attribute(&traced, "enduser.id"), Some("camera-7"));
    assert_eq!(attribute(&traced, "request.id"), Some("order-17"));
    assert_eq!(span["trace_id"], hex(&traced.trace_id), "{line}");

    // Without a token nobody is named, in the log as in the trace.
    let mut nobody = process.client(None).await;
    let refused = nobody.vision.detect(detect("order-18")).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unauthenticated);
    let line = process.says("ended").await;
    assert!(line["span"].get("identity").is_none(), "{line}");
    assert_eq!(line["code"], "UNAUTHENTICATED");
    process.signal(Signal::TERM);
    assert!(process.ends().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_numbers_and_a_start_on_a_cpu_says_nothing_of_gpus() {
    let mut process = Process::start(&["--set", "device.device=auto"]).await;
    let mut lines = process.take_seen();
    lines.extend(process.stop().await);
    let said = |message: &str| {
        lines
            .iter()
            .find(|line| line["message"] == message)
            .unwrap()
    };
    assert_eq!(said("runs on")["device"], "cpu");
    assert!(said("draining")["lame_duck_ms"].is_f64(), "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| !line.to_string().to_lowercase().contains("cuda")),
        "{lines:?}"
    );
}

/// Runs `frostline check` with these settings; its exit code, and what it says.
pub(crate) fn check(settings: &[impl AsRef<str>]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
    command.arg("check");
    for setting in settings {
        command.args(["--set", setting.as_ref()]);
    }
    let output = command.output().unwrap();
    let text = [output.stderr, output.stdout].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code(), text)
}
