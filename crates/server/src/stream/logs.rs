//! Lines of logs as clients read them: attributes and a time before each if asked for, framed unless from a terminal.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use skep_engine::container::StdStream;
use skep_model::Timestamp;

use super::stdcopy::Framing;

#[derive(Clone, Copy, Debug)]
pub(crate) struct LogStyle {
    pub(crate) framing: Framing,
    pub(crate) timestamps: bool,
    pub(crate) details: bool,
}

impl LogStyle {
    /// One record; `attributes` are shown only with details.
    pub(crate) fn render(
        self,
        stream: StdStream,
        time: Timestamp,
        attributes: &BTreeMap<String, String>,
        data: &Bytes,
    ) -> Bytes {
        if !self.timestamps && !self.details {
            return self.framing.wrap(stream, data.clone());
        }
        let mut line = BytesMut::with_capacity(data.len() + 64);
        if self.timestamps {
            line.put_slice(fixed(time).as_bytes());
            line.put_u8(b' ');
        }
        if self.details {
            line.put_slice(details(attributes).as_bytes());
            line.put_u8(b' ');
        }
        line.put_slice(data);
        self.framing.wrap(stream, line.freeze())
    }
}

/// RFC 3339 with all nine digits, so that columns line up (moby `RFC3339NanoFixed`).
pub(crate) fn fixed(time: Timestamp) -> String {
    let whole = Timestamp(time.0 - time.0.rem_euclid(1_000_000_000)).to_string();
    format!("{}.{:09}Z", whole.trim_end_matches('Z'), time.0.rem_euclid(1_000_000_000))
}

/// `k=v,k=v`, query-escaped: `docker service logs` takes the task and node from it.
fn details(attributes: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = attributes.iter().map(|(k, v)| format!("{}={}", escape(k), escape(v))).collect();
    pairs.join(",")
}

/// Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_and_times() {
        let style = LogStyle { framing: Framing::Raw, timestamps: true, details: true };
        let attributes = [("com.docker.swarm.task.id".to_owned(), "t 1".to_owned()), ("a/b".into(), "c".into())].into();
        let line = style.render(
            StdStream::Stdout,
            Timestamp(1_500_000_000_000_000_005),
            &attributes,
            &Bytes::from_static(b"hi\n"),
        );
        assert_eq!(&line[..], b"2017-07-14T02:40:00.000000005Z a%2Fb=c,com.docker.swarm.task.id=t+1 hi\n");
        let plain = LogStyle { framing: Framing::Multiplexed, timestamps: false, details: false };
        assert_eq!(
            &plain.render(StdStream::Stdout, Timestamp::ZERO, &attributes, &Bytes::from_static(b"x"))[8..],
            b"x"
        );
    }
}
