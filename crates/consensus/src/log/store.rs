//! The log as openraft uses it: memory answers, the writer thread makes durable.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::errors::Fatal;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::cache::Cache;
use super::disk::Disk;
use super::writer::{self, Write};
use crate::config::Config;
use crate::error::Error;
use crate::types::{Entry, LogId, Types, Vote};
use crate::work::Work;

/// Writes that may wait; openraft awaits room beyond that.
const QUEUE: usize = 1024;
/// A write under way for longer is why a proposal timed out.
const STALLED: Duration = Duration::from_secs(1);
/// Payload bytes in one message of replication; a single entry may be larger, up to `skep_model::MAX_BATCH_BYTES`.
const REPLICATION_BYTES: usize = 1024 * 1024;

/// A handle on the log; all clones share one file.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Write>,
    work: Work,
}

/// What the handle and the writer thread share.
pub(super) struct Shared {
    path: PathBuf,
    cache: Mutex<Cache>,
    disk: Mutex<Option<Arc<Disk>>>,
    failure: Mutex<Option<String>>,
    /// Since when the writer is busy with one group.
    writing: Mutex<Option<Instant>>,
}

/// A panic while one of these locks is held leaves whole values behind: every critical section is a few moves.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        lock(&self.cache)
    }

    pub(super) fn why_failed(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    pub(super) fn fail(&self, why: &str) {
        lock(&self.failure).get_or_insert_with(|| why.to_owned());
    }

    pub(super) fn set_writing(&self, since: Option<Instant>) {
        *lock(&self.writing) = since;
    }

    pub(super) fn take_dirty_committed(&self) -> Option<LogId> {
        let mut cache = self.cache();
        std::mem::take(&mut cache.committed_dirty).then_some(cache.committed).flatten()
    }

    pub(super) fn forget_disk(&self) {
        lock(&self.disk).take();
    }
}

impl LogStore {
    /// Opens the file and starts its writer, which ends with the last handle.
    pub(crate) async fn open(config: &Config) -> Result<Self, Error> {
        let work = Work::of(config);
        let (disk, recovered) = Disk::open(config, &work).await?;
        let cache = Cache::new(recovered);
        let disk = Arc::new(disk);
        let shared = Arc::new(Shared {
            path: disk.path().to_owned(),
            cache: Mutex::new(cache),
            disk: Mutex::new(Some(disk.clone())),
            failure: Mutex::new(None),
            writing: Mutex::new(None),
        });
        let (queue, receiver) = mpsc::channel(QUEUE);
        let for_writer = shared.clone();
        if work.is_inline() {
            tokio::spawn(writer::run_inline(work.clone(), disk, for_writer, receiver));
        } else {
            std::thread::Builder::new()
                .name("raft-log".to_owned())
                .spawn(move || writer::run(disk, for_writer, receiver))
                .map_err(|source| Error::Directory { path: config.dir.clone(), source })?;
        }
        Ok(Self { shared, queue, work })
    }

    /// Writes what is pending, ends the writer and closes the file. Harmless when done twice.
    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Write::Close(done)).await.is_ok() {
            // An error means the writer is gone already.
            let _ = closed.await;
        }
    }

    /// Why this manager does not write any more, for people.
    pub(crate) fn why_stopped(&self) -> String {
        match self.shared.why_failed() {
            Some(why) => format!("{why}; it goes on once that is mended"),
            None => "it is shut down".to_owned(),
        }
    }

    /// The file, and for how long one write to it has been under way, if that is longer than a disk in order takes.
    pub(crate) fn stalled(&self) -> Option<(PathBuf, Duration)> {
        let stalled = (*lock(&self.shared.writing))?.elapsed();
        (stalled > STALLED).then(|| (self.shared.path.clone(), stalled))
    }

    /// Says what openraft's end was about: nearly always the disk.
    pub(crate) fn explain(&self, fatal: &Fatal<Types>) -> Error {
        match fatal {
            Fatal::Stopped => Error::Stopped(self.why_stopped()),
            Fatal::StorageError(_) if self.shared.why_failed().is_some() => Error::Stopped(self.why_stopped()),
            Fatal::StorageError(error) => Error::Storage { path: self.shared.path.clone(), what: error.to_string() },
            Fatal::Panicked => Error::Stopped("the raft core panicked".to_owned()),
        }
    }

    async fn write(&self, make: impl FnOnce(writer::Done) -> Write) -> Result<(), io::Error> {
        let (done, written) = oneshot::channel();
        self.queue.send(make(done)).await.map_err(|_| self.closed())?;
        written.await.map_err(|_| self.closed())?
    }

    fn closed(&self) -> io::Error {
        io::Error::other(self.why_stopped())
    }

    async fn read(&self, wanted: Range<u64>) -> Result<Vec<Entry>, io::Error> {
        let (on_disk, newer) = self.shared.cache().read(wanted);
        if on_disk.is_empty() {
            return Ok(newer);
        }
        let disk = lock(&self.shared.disk).clone().ok_or_else(|| self.closed())?;
        let expected = on_disk.end - on_disk.start;
        let first = on_disk.start;
        let read = self.work.run(move || disk.read(on_disk)).await.map_err(io::Error::other)?;
        let mut entries = read.map_err(|error| {
            self.shared.fail(&error.to_string());
            io::Error::other(error)
        })?;
        if entries.len() as u64 != expected {
            let why = Error::Damaged {
                path: self.shared.path.clone(),
                what: format!("log entries from {first} on: {} found, {expected} expected", entries.len()),
            };
            self.shared.fail(&why.to_string());
            return Err(io::Error::other(why));
        }
        entries.extend(newer);
        Ok(entries)
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(first) => *first,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(half_open(&range)).await
    }

    /// What replication sends in one message: bounded in bytes, so that a message stays far below any transport's limit.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.read(start..end).await?;
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            bytes += match &entry.payload {
                EntryPayload::Normal(blob) => blob.0.len(),
                EntryPayload::Blank | EntryPayload::Membership(_) => 0,
            };
            bytes <= REPLICATION_BYTES
        });
        let fits = fits.count().max(1);
        entries.truncate(fits);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.cache().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let cache = self.shared.cache();
        Ok(LogState { last_purged_log_id: cache.purged, last_log_id: cache.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write(|done| Write::Vote(*vote, done)).await?;
        self.shared.cache().vote = Some(*vote);
        Ok(())
    }

    /// Only remembered: the next append takes it along, and a crash before that costs nothing but a later re-commit. Never
    /// further than what is written before it: a quorum of others may commit what this disk does not hold yet.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut cache = self.shared.cache();
        cache.committed = committed;
        cache.committed_dirty = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.cache().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let number = self.shared.cache().append(&entries);
        let committed = self.shared.take_dirty_committed();
        match self.queue.send(Write::Append { number, entries, committed, flushed }).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.closed()),
        }
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.shared.cache().truncate_after(last);
        self.write(|done| Write::TruncateAfter(last, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.shared.cache().purge(upto);
        self.write(|done| Write::Purge(upto, done)).await
    }
}
