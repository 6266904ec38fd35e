//! The one thread that writes the log: everything that waits goes into one commit, so that a hundred proposals made at the
//! same time cost one flush to disk.

use std::io;
use std::sync::Arc;

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::disk::{COMMITTED, Disk, PURGED, VOTE};
use super::store::Shared;
use crate::error::Error;
use crate::types::{Entry, LogId, Types, Vote};
use crate::work::Work;

/// Operations in one commit. Bounds how long the first of them waits for the others to be encoded.
const GROUP: usize = 256;

pub(super) type Done = oneshot::Sender<Result<(), io::Error>>;

pub(super) enum Write {
    /// With how far the log was committed when it was asked for: that much is in this queue, or written.
    Append {
        number: u64,
        entries: Vec<Entry>,
        committed: Option<LogId>,
        flushed: IOFlushed<Types>,
    },
    Vote(Vote, Done),
    TruncateAfter(Option<LogId>, Done),
    Purge(LogId, Done),
    Close(Done),
}

/// What a write changes in the file.
enum Step {
    Append(Vec<Entry>),
    Committed(LogId),
    Vote(Vote),
    RemoveFrom(u64),
    Purge(LogId),
}

/// Who hears of its outcome.
enum Waiter {
    Flushed(u64, IOFlushed<Types>),
    Done(Done),
}

/// Runs on a thread until told to close or until nobody can ask any more.
pub(super) fn run(disk: Arc<Disk>, shared: Arc<Shared>, mut queue: mpsc::Receiver<Write>) {
    let mut close = None;
    while close.is_none()
        && let Some(first) = queue.blocking_recv()
    {
        shared.set_writing(Some(Instant::now()));
        close = write_group(&disk, &shared, group(first, &mut queue));
        shared.set_writing(None);
    }
    end(disk, &shared, close);
}

/// The same as a task of the caller's runtime; what waits while a slow disk works is again one group.
pub(super) async fn run_inline(work: Work, disk: Arc<Disk>, shared: Arc<Shared>, mut queue: mpsc::Receiver<Write>) {
    let mut close = None;
    while close.is_none()
        && let Some(first) = queue.recv().await
    {
        let group = group(first, &mut queue);
        shared.set_writing(Some(Instant::now()));
        work.simulated_latency().await;
        close = write_group(&disk, &shared, group);
        shared.set_writing(None);
    }
    end(disk, &shared, close);
}

fn group(first: Write, queue: &mut mpsc::Receiver<Write>) -> Vec<Write> {
    let mut group = vec![first];
    while group.len() < GROUP
        && let Ok(next) = queue.try_recv()
    {
        group.push(next);
    }
    group
}

fn end(disk: Arc<Disk>, shared: &Shared, close: Option<Done>) {
    shared.forget_disk();
    drop(disk);
    if let Some(done) = close {
        // Whoever asked may have gone away.
        let _ = done.send(Ok(()));
    }
}

/// Writes a group in order and answers everyone in it. Returns whom to tell once the file is closed, if asked to close.
fn write_group(disk: &Disk, shared: &Shared, group: Vec<Write>) -> Option<Done> {
    let (mut steps, mut waiters, mut close) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()), None);
    for write in group {
        match write {
            Write::Append { number, entries, committed, flushed } => {
                steps.push(Step::Append(entries));
                steps.extend(committed.map(Step::Committed));
                waiters.push(Waiter::Flushed(number, flushed));
            }
            Write::Vote(vote, done) => {
                steps.push(Step::Vote(vote));
                waiters.push(Waiter::Done(done));
            }
            Write::TruncateAfter(last, done) => {
                steps.push(Step::RemoveFrom(last.map_or(0, |id| id.index + 1)));
                waiters.push(Waiter::Done(done));
            }
            Write::Purge(upto, done) => {
                steps.push(Step::Purge(upto));
                waiters.push(Waiter::Done(done));
            }
            Write::Close(done) => {
                // Nothing is written after it.
                steps.extend(shared.take_dirty_committed().map(Step::Committed));
                close = Some(done);
            }
        }
    }
    // A file that failed once is not trusted again: what the kernel dropped cannot be told from what it kept.
    let result = match shared.why_failed() {
        Some(why) => Err(why),
        None => commit(disk, &steps).map_err(|error| {
            let why = error.to_string();
            tracing::error!(path = %disk.path().display(), reason = %why, "failed to write the raft log");
            shared.fail(&why);
            why
        }),
    };
    for waiter in waiters {
        let answer = result.clone().map_err(io::Error::other);
        match waiter {
            Waiter::Flushed(number, flushed) => {
                if answer.is_ok() {
                    shared.cache().made_durable(number);
                }
                flushed.io_completed(answer);
            }
            Waiter::Done(done) => {
                let _ = done.send(answer);
            }
        }
    }
    close
}

fn commit(disk: &Disk, steps: &[Step]) -> Result<(), Error> {
    if steps.is_empty() {
        return Ok(());
    }
    let transaction = disk.begin()?;
    for step in steps {
        match step {
            Step::Append(entries) => disk.put_entries(&transaction, entries)?,
            Step::Committed(upto) => disk.put_meta(&transaction, COMMITTED, upto)?,
            Step::Vote(vote) => disk.put_meta(&transaction, VOTE, vote)?,
            Step::RemoveFrom(first) => disk.remove_entries(&transaction, *first..u64::MAX)?,
            Step::Purge(upto) => {
                disk.remove_entries(&transaction, 0..upto.index + 1)?;
                disk.put_meta(&transaction, PURGED, upto)?;
            }
        }
    }
    disk.commit(transaction)
}
