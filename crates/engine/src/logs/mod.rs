//! Container logs in Docker's `json-file` format: written by the daemon, read back by `docker logs`.
//!
//! One JSON object a line: `{"log":"…\n","stream":"stdout","time":"RFC 3339"}`. Lines longer than 16 KiB are several
//! records, only the last with a newline. The driver `local` is the same file; `none` keeps nothing.

mod reader;
mod spool;
mod writer;

pub(crate) use reader::{read, wanted};
pub(crate) use spool::Spool;
pub(crate) use writer::LogWriter;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{EngineError, Result};

/// A line longer than this is split (moby `defaultBufSize`).
pub(crate) const MAX_LINE: usize = 16 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// `None`: one file without end.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) max_files: usize,
}

/// Reads and checks a log configuration; `None` means that nothing is kept.
pub(crate) fn rotation(driver: &str, options: &BTreeMap<String, String>) -> Result<Option<Rotation>> {
    match driver {
        "" | "json-file" | "local" => {}
        "none" => return Ok(None),
        other => {
            return Err(EngineError::Invalid(format!(
                "error looking up logging plugin {other}: plugin {other:?} not found"
            )));
        }
    }
    let local = driver == "local";
    let mut rotation = if local {
        Rotation { max_bytes: Some(20 << 20), max_files: 5 }
    } else {
        Rotation { max_bytes: None, max_files: 1 }
    };
    for (key, value) in options {
        match key.as_str() {
            "max-size" => rotation.max_bytes = parse_size(value)?,
            "max-file" => {
                let invalid = || EngineError::Invalid(format!("invalid value for max-file: {value}"));
                rotation.max_files = value.parse().ok().filter(|n| *n > 0).ok_or_else(invalid)?;
            }
            // The log is written by the daemon at its own pace: a container is never held up by it.
            "mode" | "max-buffer-size" => {}
            "compress" if matches!(value.as_str(), "false" | "0") => {}
            "compress" | "labels" | "labels-regex" | "env" | "env-regex" | "tag" => {
                return Err(EngineError::NotImplemented(format!("log option '{key}' is not supported yet")));
            }
            other => {
                return Err(EngineError::Invalid(format!(
                    "unknown log opt '{other}' for {} log driver",
                    if local { "local" } else { "json-file" }
                )));
            }
        }
    }
    if rotation.max_files > 1 && rotation.max_bytes.is_none() {
        return Err(EngineError::Invalid("max-file cannot be set, if max-size is not set".to_owned()));
    }
    Ok(Some(rotation))
}

/// `10m`, `1g`, `512`; -1 is no limit.
fn parse_size(text: &str) -> Result<Option<u64>> {
    let invalid = || EngineError::Invalid(format!("invalid size: '{text}'"));
    if text == "-1" {
        return Ok(None);
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits: String = lower.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let factor: u64 = match lower[digits.len()..].trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(invalid()),
    };
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    number.checked_mul(factor).map(Some).ok_or_else(invalid)
}

#[cfg(test)]
mod tests;
