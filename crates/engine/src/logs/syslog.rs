//! Lines as syslog messages: RFC 3164, RFC 5424, and the format that Go's `log/syslog` sends to its own host, which is
//! Docker's default. Laid out as moby 20.10 does it with `srslog`; over streams, too, a message ends with a newline
//! (RFC 6587, non-transparent framing).

use std::path::PathBuf;

use skep_model::Timestamp;

use super::remote::Address;
use crate::container::StdStream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Unix,
    Rfc3164,
    Rfc5424,
    Rfc5424Micro,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Syslog {
    /// RFC 5424, table 1.
    pub(super) facility: u8,
    pub(super) style: Style,
    pub(super) tag: String,
    pub(super) hostname: String,
}

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "", "", "",
    "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const PORT: &str = "514";

impl Syslog {
    /// `line` without its newline; `local` is the time at this host, `offset` how many seconds it is ahead of UTC.
    pub(super) fn message(&self, stream: StdStream, line: &[u8], local: Timestamp, offset: i32) -> Vec<u8> {
        let severity = if stream == StdStream::Stderr { 3 } else { 6 };
        let priority = self.facility * 8 + severity;
        let text = local.to_string();
        let (date, time) = (text.get(..10).unwrap_or_default(), text.get(11..19).unwrap_or_default());
        let Self { tag, hostname, .. } = self;
        let pid = std::process::id();
        let zone = match offset {
            0 => "Z".to_owned(),
            _ => format!(
                "{}{:02}:{:02}",
                if offset < 0 { '-' } else { '+' },
                offset.abs() / 3600,
                offset.abs() / 60 % 60
            ),
        };
        let head = match self.style {
            Style::Unix => format!("<{priority}>{} {time} {tag}[{pid}]: ", stamp(date)),
            Style::Rfc3164 => format!("<{priority}>{} {time} {hostname} {tag}[{pid}]: ", stamp(date)),
            Style::Rfc5424 => format!("<{priority}>1 {date}T{time}{zone} {hostname} {tag} {pid} {tag} - "),
            Style::Rfc5424Micro => {
                let micros = local.0.rem_euclid(1_000_000_000) / 1000;
                format!("<{priority}>1 {date}T{time}.{micros:06}{zone} {hostname} {tag} {pid} {tag} - ")
            }
        };
        [head.as_bytes(), line, b"\n"].concat()
    }
}

/// `2026-11-03` as `Nov  3`.
fn stamp(date: &str) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let number = |range| date.get(range).and_then(|n: &str| n.parse::<usize>().ok()).unwrap_or(1);
    format!("{} {:2}", MONTHS[(number(5..7) - 1) % 12], number(8..10))
}

pub(super) fn facility(text: &str) -> Result<u8, String> {
    if text.is_empty() {
        return Ok(3);
    }
    let named = FACILITIES.iter().position(|name| *name == text);
    named
        .or_else(|| text.parse().ok())
        .and_then(|n| u8::try_from(n).ok())
        .filter(|n| *n < 24)
        .ok_or_else(|| "invalid syslog facility".to_owned())
}

pub(super) fn style(text: &str) -> Result<Style, String> {
    match text {
        "" => Ok(Style::Unix),
        "rfc3164" => Ok(Style::Rfc3164),
        "rfc5424" => Ok(Style::Rfc5424),
        "rfc5424micro" => Ok(Style::Rfc5424Micro),
        _ => Err("Invalid syslog format".to_owned()),
    }
}

pub(super) fn address(text: &str) -> Result<Address, String> {
    if text.is_empty() {
        return Ok(Address::Syslog);
    }
    let form = || format!("syslog-address should be in form proto://address, got {text}");
    let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
    let path = || match std::fs::metadata(rest) {
        Ok(_) => Ok(PathBuf::from(rest)),
        Err(error) => Err(format!("stat {rest}: {}", super::remote::words(&error))),
    };
    match scheme {
        "unix" => path().map(Address::Unix),
        "unixgram" => path().map(Address::Unixgram),
        "tcp" => with_port(text, rest).map(Address::Tcp),
        "udp" => with_port(text, rest).map(Address::Udp),
        _ => Err(form()),
    }
}

fn with_port(text: &str, rest: &str) -> Result<String, String> {
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once(':').filter(|_| !host.ends_with(']')) {
        None => Ok(format!("{host}:{PORT}")),
        Some((_, port)) if port.parse::<u16>().is_ok() => Ok(host.to_owned()),
        Some((_, port)) => Err(format!("parse {text:?}: invalid port \":{port}\" after host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_dockers() {
        // 2026-11-03T19:28:09.123456789Z
        let at = Timestamp(1_793_734_089_123_456_789);
        let pid = std::process::id();
        let message = |style, facility, stream, offset| {
            let syslog = Syslog { facility, style, tag: "box".into(), hostname: "node1".into() };
            String::from_utf8(syslog.message(stream, b"hi", at, offset)).unwrap()
        };
        let (out, err) = (StdStream::Stdout, StdStream::Stderr);
        assert_eq!(message(Style::Unix, 3, out, 0), format!("<30>Nov  3 19:28:09 box[{pid}]: hi\n"));
        assert_eq!(message(Style::Rfc3164, 19, err, 0), format!("<155>Nov  3 19:28:09 node1 box[{pid}]: hi\n"));
        assert_eq!(
            message(Style::Rfc5424, 3, out, 0),
            format!("<30>1 2026-11-03T19:28:09Z node1 box {pid} box - hi\n")
        );
        assert_eq!(
            message(Style::Rfc5424Micro, 3, err, -12_600),
            format!("<27>1 2026-11-03T19:28:09.123456-03:30 node1 box {pid} box - hi\n")
        );
    }

    #[test]
    fn options_are_read_as_moby_reads_them() {
        assert_eq!((facility(""), facility("local7"), facility("9")), (Ok(3), Ok(23), Ok(9)));
        assert!(facility("24").is_err() && facility("fish").is_err());
        assert_eq!(address("tcp://host"), Ok(Address::Tcp("host:514".into())));
        assert_eq!(address("udp://[::1]"), Ok(Address::Udp("[::1]:514".into())));
        assert_eq!(address("udp://10.0.0.1:5514"), Ok(Address::Udp("10.0.0.1:5514".into())));
        assert_eq!(address("udp://a:b:c").unwrap_err(), r#"parse "udp://a:b:c": invalid port ":c" after host"#);
        assert_eq!(address("foo").unwrap_err(), "syslog-address should be in form proto://address, got foo");
        assert_eq!(address("unix:///nope").unwrap_err(), "stat /nope: no such file or directory");
    }
}
