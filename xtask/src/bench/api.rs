//! One keep-alive connection to a daemon's socket, and what is polled over it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

/// One keep-alive connection to a daemon.
pub(super) struct Api {
    stream: UnixStream,
}

impl Api {
    pub(super) fn open(socket: &str) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot reach {socket}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Self { stream })
    }

    pub(super) fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            self.stream,
            "{method} /v1.41{path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut head = Vec::new();
        let mut byte = [0; 1];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let mut answer = Vec::new();
        if field("transfer-encoding:") == Some("chunked") {
            loop {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    self.stream.read_exact(&mut byte)?;
                    line.push(byte[0]);
                }
                let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16)?;
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk)?;
                answer.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = field("content-length:").and_then(|l| l.parse().ok()) {
            answer.resize(length, 0);
            self.stream.read_exact(&mut answer)?;
        }
        let value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        if status >= 300 && status != 304 {
            bail!("{method} {path}: {status} {value}");
        }
        Ok(value)
    }

    pub(super) fn tasks(&mut self, service: &str) -> anyhow::Result<Vec<Value>> {
        let all = self.call("GET", "/tasks", None)?;
        Ok(all.as_array().into_iter().flatten().filter(|t| t["ServiceID"] == service).cloned().collect())
    }

    /// Waits until exactly `count` tasks run and are wanted and pass `filter`.
    pub(super) fn await_running(
        &mut self,
        service: &str,
        count: usize,
        filter: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let runs = |t: &Value| t["Status"]["State"] == "running" && t["DesiredState"] == "running";
        self.until(|api| Ok(api.tasks(service)?.iter().filter(|t| runs(t) && filter(t)).count() == count))
    }

    pub(super) fn until(&mut self, mut done: impl FnMut(&mut Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !done(self)? {
            if Instant::now() > deadline {
                bail!("a state was not reached within 120 s");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(super) fn create(&mut self, spec: &Value) -> anyhow::Result<String> {
        let answer = self.call("POST", "/services/create", Some(spec))?;
        Ok(answer["ID"].as_str().context("no service id")?.to_owned())
    }

    pub(super) fn update(&mut self, id: &str, spec: &Value) -> anyhow::Result<()> {
        let version = self.call("GET", &format!("/services/{id}"), None)?["Version"]["Index"].clone();
        self.call("POST", &format!("/services/{id}/update?version={version}"), Some(spec)).map(drop)
    }

    pub(super) fn remove(&mut self, id: &str) -> anyhow::Result<()> {
        self.call("DELETE", &format!("/services/{id}"), None)?;
        self.until(|api| Ok(api.tasks(id)?.is_empty()))
    }
}
