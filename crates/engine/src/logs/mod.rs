//! Container logs in Docker's `json-file` format: written by the daemon, read back by `docker logs`.
//!
//! One JSON object a line: `{"log":"…\n","stream":"stdout","attrs":{…},"time":"RFC 3339"}`. Lines longer than 16 KiB are several
//! records, only the last with a newline. The driver `local` is the same file; `none` keeps nothing; of
//! what `syslog` and `journald` send away (`remote`) the same file is kept, to be read.

mod journald;
mod options;
mod reader;
mod remote;
mod spool;
mod syslog;
mod tag;
mod writer;

pub(crate) use options::{check, readable, settings};
pub(crate) use reader::{read, wanted};
pub(crate) use remote::Remote;
pub(crate) use spool::Spool;
pub(crate) use writer::LogWriter;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A line longer than this is split (moby `defaultBufSize`).
pub(crate) const MAX_LINE: usize = 16 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    stream: std::borrow::Cow<'a, str>,
    /// What the options `labels`, `env` and `tag` ask for.
    #[serde(default, skip_serializing_if = "is_empty")]
    attrs: std::borrow::Cow<'a, BTreeMap<String, String>>,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
}

#[allow(clippy::ptr_arg)]
fn is_empty(attrs: &std::borrow::Cow<'_, BTreeMap<String, String>>) -> bool {
    attrs.is_empty()
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// `None`: one file without end.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) max_files: usize,
    /// Those that are full, with gzip.
    pub(crate) compress: bool,
}

#[cfg(test)]
mod tests;
