//! Output on its way from a container's pipe to its log, safe from a kill of the daemon between the two.
//!
//! What is read into memory is nowhere else; so nothing is. `splice` moves bytes from the pipe into a file inside the
//! kernel, where a kill cannot come in between; the log is written from there, and then the file's header is moved on in
//! one write. The header also says how long the log was before: a daemon that finds lines here cuts the log there and
//! writes them again. (A kill can come in the middle of a write.) A crash of the host loses this file, and the container
//! with it.
//!
//! ```text
//!   pipe --splice--> | header: log size, begin | done … | begin: half a line, new bytes | --> log
//! ```

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::pipe::SpliceFlags;
use skep_model::Timestamp;

use super::LogWriter;
use crate::container::StdStream;

const HEADER: u64 = 16;
/// Taken at once.
const BATCH: usize = 64 * 1024;
/// Room that is done with is given back in steps of this.
const PUNCH: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    stream: StdStream,
    /// Where the bytes not in the log begin, and end.
    begin: u64,
    end: u64,
    punched: u64,
}

impl Spool {
    /// Opens or makes the spool, and brings into the log what a killed daemon left in it.
    pub(crate) fn open(path: &Path, stream: StdStream, log: &mut LogWriter, now: Timestamp) -> std::io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut header = [0; HEADER as usize];
        let size = file.metadata()?.len();
        let known = size >= HEADER && file.read_exact_at(&mut header, 0).is_ok();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let begin = if known { number(&header[8..]).max(HEADER) } else { HEADER };
        let mut spool = Self { file, stream, begin, end: size.max(begin), punched: begin };
        let mut left = vec![0; usize::try_from(spool.end - begin).unwrap_or(0)];
        spool.file.read_exact_at(&mut left, begin)?;
        if super::writer::has_complete(&left) {
            // Killed on the way to the log: none of it is there, or some, or all. It goes there again from where the log was.
            log.rewind(number(&header[..8]))?;
        }
        log.write(stream, &left, now)?;
        spool.advance(log)?;
        Ok(spool)
    }

    /// Moves what the pipe has into the log; `None` at its end. `see` is shown the new bytes.
    pub(crate) fn take<T>(
        &mut self,
        pipe: impl AsFd,
        log: &mut LogWriter,
        now: Timestamp,
        see: impl FnOnce(&[u8]) -> T,
    ) -> std::io::Result<Option<T>> {
        thread_local!(static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; BATCH]));
        // Before the bytes, so that they are never seen beside the size of another moment.
        log.rotate_if_full()?;
        self.write_header(log.size())?;
        let mut offset = self.end;
        let flags = SpliceFlags::NONBLOCK;
        let taken = rustix::pipe::splice(pipe, None, &self.file, Some(&mut offset), BATCH, flags)?;
        if taken == 0 {
            return Ok(None);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let new = &mut buffer[..taken];
            self.file.read_exact_at(new, self.end)?;
            self.end += taken as u64;
            // A full disk costs log lines; it must not stop the container, which waits when its pipe is full.
            if let Err(error) = log.write(self.stream, new, now).and_then(|()| self.advance(log)) {
                tracing::warn!(%error, "container log not written");
            }
            Ok(Some(see(new)))
        })
    }

    /// Only the half line that the log still waits for stays.
    fn advance(&mut self, log: &LogWriter) -> std::io::Result<()> {
        let waiting = log.waiting(self.stream) as u64;
        self.begin = self.end.saturating_sub(waiting).max(HEADER);
        self.write_header(log.size())?;
        if self.begin - self.punched >= PUNCH {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let from = self.punched;
            if rustix::fs::fallocate(&self.file, flags, from, self.begin - from).is_ok() {
                self.punched = self.begin;
            }
        }
        Ok(())
    }

    fn write_header(&self, log_size: u64) -> std::io::Result<()> {
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&log_size.to_le_bytes());
        header[8..].copy_from_slice(&self.begin.to_le_bytes());
        // One write within one page: a kill leaves the old or the new one.
        self.file.write_all_at(&header, 0)
    }
}
