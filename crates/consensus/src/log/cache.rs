//! The newest entries in memory: everything not yet on disk, and some more, because applying and replicating an entry
//! follow its writing closely.

use std::collections::BTreeMap;
use std::ops::Range;

use super::disk::Recovered;
use crate::types::{Entry, LogId, Vote};

/// Entries kept once they are on disk.
const KEPT_ENTRIES: usize = 512;

/// The log's state as its user sees it, ahead of the disk by what the writer has queued.
#[derive(Default)]
pub(super) struct Cache {
    /// Contiguous up to `last`; each with the number of the write that makes it durable.
    entries: BTreeMap<u64, (u64, Entry)>,
    pub(super) last: Option<LogId>,
    /// Where the log begins if nothing was purged; 0 in a cluster's life.
    first: u64,
    pub(super) purged: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// `committed` is not on disk yet; the next append takes it along.
    pub(super) committed_dirty: bool,
    writes: u64,
    durable: u64,
}

impl Cache {
    pub(super) fn new(recovered: Recovered) -> Self {
        let Recovered { vote, committed, purged, first, last } = recovered;
        Self { vote, committed, purged, first, last, ..Self::default() }
    }

    /// Takes entries in and returns the number of the write that is to make them durable.
    pub(super) fn append(&mut self, entries: &[Entry]) -> u64 {
        self.writes += 1;
        if let (None, Some(entry)) = (&self.last, entries.first()) {
            self.first = entry.log_id.index;
        }
        for entry in entries {
            self.entries.insert(entry.log_id.index, (self.writes, entry.clone()));
            self.last = Some(entry.log_id);
        }
        self.writes
    }

    /// Write `number` and all before it are on disk.
    pub(super) fn made_durable(&mut self, number: u64) {
        self.durable = self.durable.max(number);
        while self.entries.len() > KEPT_ENTRIES {
            match self.entries.first_key_value() {
                Some((_, (write, _))) if *write <= self.durable => self.entries.pop_first(),
                _ => break,
            };
        }
    }

    pub(super) fn truncate_after(&mut self, last: Option<LogId>) {
        let first_gone = last.as_ref().map_or(0, |id| id.index + 1);
        self.entries.split_off(&first_gone);
        self.last = self.last.min(last).max(self.purged);
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.last = self.last.max(Some(upto));
        self.purged = Some(upto);
    }

    /// What of `wanted` exists: the part only the disk has, and the entries from here that follow it.
    pub(super) fn read(&self, wanted: Range<u64>) -> (Range<u64>, Vec<Entry>) {
        let end = wanted.end.min(self.last.as_ref().map_or(0, |id| id.index + 1));
        let start = wanted.start.max(self.purged.as_ref().map_or(self.first, |id| id.index + 1)).min(end);
        let first_here = self.entries.first_key_value().map_or(end, |(index, _)| *index).clamp(start, end);
        let here = self.entries.range(first_here..end).map(|(_, (_, entry))| entry.clone()).collect();
        (start..first_here, here)
    }
}
