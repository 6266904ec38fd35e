//! Appends to a container's log, rotating it.
//!
//! Writes go to the page cache and are not synced: a crash of the daemon loses nothing, a crash of the host may lose what a
//! crash of Docker's host would.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_model::Timestamp;

use super::remote::{Backlog, Remote};
use super::{Line, MAX_LINE, Rotation};
use crate::container::StdStream;

#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    /// None if the lines are only sent away.
    file: Option<File>,
    remote: Option<Remote>,
    size: u64,
    rotation: Rotation,
    attributes: BTreeMap<String, String>,
    /// The last full file on its way to being smaller.
    packing: Packing,
    stdout: Pending,
    stderr: Pending,
    /// Reused for every record.
    scratch: Vec<u8>,
}

/// The beginning of a line whose end has not come. The spool keeps it too, for a daemon that is killed.
type Pending = Vec<u8>;

impl LogWriter {
    pub(crate) fn open(path: &Path, rotation: Rotation) -> std::io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file: Some(file), size, rotation, ..Self::without_file(path) })
    }

    pub(crate) fn without_file(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            remote: None,
            size: 0,
            rotation: Rotation { max_bytes: None, max_files: 1, compress: false },
            attributes: BTreeMap::new(),
            packing: Packing(None),
            stdout: Pending::new(),
            stderr: Pending::new(),
            scratch: Vec::new(),
        }
    }

    /// To where every line goes as well.
    pub(crate) fn with_remote(mut self, remote: Option<Remote>) -> Self {
        self.remote = remote;
        self
    }

    /// What output waits for before there is more of it.
    pub(crate) fn backlog(&self) -> Option<Arc<Backlog>> {
        self.remote.as_ref().and_then(Remote::backlog)
    }

    /// Beside every line.
    pub(crate) fn with_attributes(mut self, attributes: BTreeMap<String, String>) -> Self {
        self.attributes = attributes;
        self
    }

    /// Bytes in the present file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of half a line that wait for the rest.
    pub(crate) fn waiting(&self, stream: StdStream) -> usize {
        if stream == StdStream::Stderr { self.stderr.len() } else { self.stdout.len() }
    }

    /// Takes output as it came from the pipe, and writes the lines that are complete.
    pub(crate) fn write(&mut self, stream: StdStream, data: &[u8], now: Timestamp) -> std::io::Result<()> {
        let mut batch = std::mem::take(&mut self.scratch);
        let pending = if stream == StdStream::Stderr { &mut self.stderr } else { &mut self.stdout };
        split(pending, data, |line| {
            record(&mut batch, stream, line, &self.attributes, now);
            if let Some(remote) = &self.remote {
                remote.say(stream, line, now);
            }
        });
        let result = if batch.is_empty() { Ok(()) } else { self.append(&batch) };
        batch.clear();
        batch.shrink_to(4 * MAX_LINE);
        self.scratch = batch;
        result
    }

    /// Takes back what was written after the file had `size` bytes.
    pub(crate) fn rewind(&mut self, size: u64) -> std::io::Result<()> {
        if size < self.size {
            if let Some(file) = &self.file {
                file.set_len(size)?;
            }
            self.size = size;
        }
        Ok(())
    }

    /// The stream has ended: what is left is a line without an end.
    pub(crate) fn finish(&mut self, stream: StdStream, now: Timestamp) -> std::io::Result<()> {
        let pending = std::mem::take(self.pending(stream));
        if pending.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::new();
        record(&mut batch, stream, &pending, &self.attributes, now);
        if let Some(remote) = &self.remote {
            remote.say(stream, &pending, now);
        }
        self.append(&batch)
    }

    fn pending(&mut self, stream: StdStream) -> &mut Pending {
        if stream == StdStream::Stderr { &mut self.stderr } else { &mut self.stdout }
    }

    fn append(&mut self, batch: &[u8]) -> std::io::Result<()> {
        self.rotate_if_full()?;
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(batch)?;
        self.size += batch.len() as u64;
        Ok(())
    }

    /// As moby: before a record, when the file has reached its size.
    pub(crate) fn rotate_if_full(&mut self) -> std::io::Result<()> {
        if self.rotation.max_bytes.is_some_and(|max| self.size >= max) { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.packing.end();
        let path = &self.path;
        for n in (1..self.rotation.max_files.saturating_sub(1)).rev() {
            for (from, to) in
                [(numbered(path, n), numbered(path, n + 1)), (compressed(path, n), compressed(path, n + 1))]
            {
                if std::fs::rename(from, &to).is_err() {
                    // The other form of the one before, which leaves.
                    let _ = std::fs::remove_file(to);
                }
            }
        }
        if self.rotation.max_files > 1 {
            std::fs::rename(path, numbered(path, 1))?;
            let _ = std::fs::remove_file(compressed(path, 1));
        } else {
            std::fs::remove_file(path)?;
        }
        self.file = Some(append(path)?);
        self.size = 0;
        if self.rotation.compress {
            let path = path.clone();
            self.packing.0 = Some(std::thread::spawn(move || {
                if let Err(error) = pack(&path) {
                    tracing::warn!(%error, log = %path.display(), "a full log stays uncompressed");
                }
            }));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Packing(Option<std::thread::JoinHandle<()>>);

impl Packing {
    fn end(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Packing {
    /// The next writer renames what is being packed.
    fn drop(&mut self) {
        self.end();
    }
}

/// `x.log.1` becomes `x.log.1.gz`.
fn pack(log: &Path) -> std::io::Result<()> {
    let (plain, packed) = (numbered(log, 1), compressed(log, 1));
    let partial = packed.with_extension("part");
    let mut to = flate2::write::GzEncoder::new(create(&partial)?, flate2::Compression::default());
    std::io::copy(&mut File::open(&plain)?, &mut to)?;
    to.finish()?;
    std::fs::rename(partial, packed)?;
    std::fs::remove_file(plain)
}

fn create(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(path)
}

/// The `n`th full file, from the newest.
pub(super) fn numbered(log: &Path, n: usize) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

pub(super) fn compressed(log: &Path, n: usize) -> PathBuf {
    let mut name = numbered(log, n).into_os_string();
    name.push(".gz");
    PathBuf::from(name)
}

/// Whether [`LogWriter::write`] would write some of it.
pub(crate) fn has_complete(data: &[u8]) -> bool {
    data.len() >= MAX_LINE || data.contains(&b'\n')
}

/// Joins what is waiting and what is new, and gives out what is complete: lines, and pieces of lines too long to wait for.
fn split(pending: &mut Vec<u8>, data: &[u8], mut give: impl FnMut(&[u8])) {
    let mut rest = data;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let (line, after) = rest.split_at(end + 1);
        rest = after;
        if pending.is_empty() {
            pieces(line, &mut give);
        } else {
            pending.extend_from_slice(line);
            pieces(pending, &mut give);
            pending.clear();
        }
    }
    pending.extend_from_slice(rest);
    while pending.len() >= MAX_LINE {
        let cut = character_boundary(pending, MAX_LINE);
        give(&pending[..cut]);
        pending.drain(..cut);
    }
}

fn pieces(mut line: &[u8], give: &mut impl FnMut(&[u8])) {
    while line.len() > MAX_LINE {
        let (piece, rest) = line.split_at(character_boundary(line, MAX_LINE));
        give(piece);
        line = rest;
    }
    give(line);
}

fn append(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Not in the middle of a UTF-8 character, if there is one to be cut.
fn character_boundary(bytes: &[u8], limit: usize) -> usize {
    (limit.saturating_sub(3)..=limit)
        .rev()
        .find(|cut| bytes.get(*cut).is_none_or(|b| b & 0xc0 != 0x80))
        .unwrap_or(limit)
}

fn record(batch: &mut Vec<u8>, stream: StdStream, line: &[u8], attributes: &BTreeMap<String, String>, now: Timestamp) {
    let stream = if stream == StdStream::Stderr { "stderr" } else { "stdout" };
    let line = Line {
        // Bytes that are not UTF-8 become replacement characters, as in Go's JSON.
        log: String::from_utf8_lossy(line),
        stream: stream.into(),
        attrs: Cow::Borrowed(attributes),
        time: now.to_string().into(),
    };
    if serde_json::to_writer(&mut *batch, &line).is_ok() {
        batch.push(b'\n');
    }
}
