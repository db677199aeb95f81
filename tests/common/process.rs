//! The real server in a process of its own.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::Context;

/// A running `frostline serve`. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    /// Where it listens, as a URL.
    pub(crate) address: String,
    log: mpsc::Receiver<String>,
}

impl Process {
    /// Starts a server on a free port and waits until it is ready; `settings` are `section.key=value`.
    pub(crate) fn start(repository: Option<&Path>, settings: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
        if let Some(repository) = repository {
            command.args([OsStr::new("--repository"), repository.as_os_str()]);
        }
        // Fixed, unless a setting says otherwise: a trial may find one way the faster today and another tomorrow.
        let fixed = ["device.device=cpu", "telemetry.format=json"];
        for setting in fixed.iter().chain(settings) {
            command.args(["--set", setting]);
        }
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("no stderr")?;
        let (lines, log) = mpsc::channel();
        // Reads to the end, or the server would block on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Nobody may be listening any more.
                let _ = lines.send(line);
            }
        });
        let mut process = Self {
            child,
            address: String::new(),
            log,
        };
        let mut said = Vec::new();
        while let Ok(line) = process.log.recv_timeout(Duration::from_secs(60)) {
            let fields = serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default();
            if fields["message"] == "ready" {
                let address = fields["address"].as_str().context("no address")?;
                process.address = format!("http://{address}");
                return Ok(process);
            }
            said.push(line);
        }
        anyhow::bail!("the server did not start:\n{}", said.join("\n"))
    }

    /// Sends it a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &pid])
            .status()?
            .success();
        anyhow::ensure!(sent, "kill failed");
        Ok(())
    }

    /// Waits until it has ended: its status, and what it wrote to its log since it was ready.
    pub(crate) fn wait(mut self, limit: Duration) -> anyhow::Result<(ExitStatus, String)> {
        let until = Instant::now() + limit;
        let mut log = String::new();
        // The log ends when the process does.
        loop {
            match self
                .log
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    log.push_str(&line);
                    log.push('\n');
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    anyhow::bail!("it still runs after {limit:?}; its log:\n{log}")
                }
            }
        }
        Ok((self.child.wait()?, log))
    }

    /// CPU time that it has used, user and system, over all threads that live.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    /// Its resident memory in MiB.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("no Rss")?.parse::<f64>()? / 1024.0)
    }
}

/// As [`Process::cpu`], of the process that asks.
pub(crate) fn own_cpu() -> anyhow::Result<Duration> {
    cpu_of("self")
}

fn cpu_of(process: &str) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let schedule = fs::read_to_string(task?.path().join("schedstat"))?;
        let ran = schedule
            .split_whitespace()
            .next()
            .context("empty schedstat")?;
        nanos += ran.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
