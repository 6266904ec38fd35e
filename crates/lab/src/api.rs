//! The few calls of the Docker Engine API that form a swarm, over a host's unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// One request on a connection of its own; `Err` carries the text to show.
pub fn call(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
    let exchange = || -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: lab\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        // HTTP/1.0: no chunks, and the server closes when it is done.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(answer.len());
        let status = String::from_utf8_lossy(&answer[..end]);
        let status = status.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Ok((status, answer.split_off((end + 4).min(answer.len()))))
    };
    let (status, body) = exchange().map_err(|e| e.to_string())?;
    let value = serde_json::from_slice::<Value>(&body).unwrap_or(Value::Null);
    if (200..300).contains(&status) {
        Ok(value)
    } else {
        Err(value["message"].as_str().map_or_else(|| format!("status {status}"), str::to_owned))
    }
}
