//! One request of the Engine API on a connection of its own, for tests that ask more often than a CLI can be started.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

/// What became of a request.
#[derive(Debug)]
pub enum Answer {
    /// Status and body.
    Given(u16, Value),
    /// It was never sent: nobody listens.
    Unsent,
    /// It was sent, and no whole answer came: it may have been carried out.
    Lost,
}

/// `method path` at a unix socket, with a body if it is not null; no answer within `patience` counts as lost.
pub fn call(socket: &str, method: &str, path: &str, body: &Value, patience: Duration) -> Answer {
    let Ok(mut stream) = UnixStream::connect(socket) else { return Answer::Unsent };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut exchange = || -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(patience))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        // HTTP/1.0: no chunks, and the server closes when it is done.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let Ok(answer) = exchange() else { return Answer::Lost };
    let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return Answer::Lost };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    match head.split(' ').nth(1).and_then(|status| status.parse().ok()) {
        Some(status) => Answer::Given(status, serde_json::from_slice(&answer[end + 4..]).unwrap_or(Value::Null)),
        None => Answer::Lost,
    }
}
