//! The file `raft.db`: tables, sealing and the errors of opening it. Synchronous; callers choose the thread.

use std::io;
use std::ops::{Bound, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{
    BackendError, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, TableError, WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::Config;
use crate::disk::{DiskFile, Open};
use crate::error::Error;
use crate::seal::{Place, Sealer};
use crate::types::{Entry, LogId, Vote};
use crate::work::Work;

pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Rows of the `meta` table.
pub(crate) const VOTE: &str = "vote";
pub(crate) const COMMITTED: &str = "committed";
pub(crate) const PURGED: &str = "purged";
const IDENTITY: &str = "identity";

const FORMAT: u32 = 1;
/// redb would take up to 1 GiB; the log is read once after a restart and by late followers.
const PAGE_CACHE_BYTES: usize = 2 * 1024 * 1024;
/// A predecessor in this process may still be closing the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    raft_id: u64,
}

/// What the file says at start.
pub(crate) struct Recovered {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The oldest entry's index, if nothing was purged.
    pub(crate) first: u64,
    pub(crate) last: Option<LogId>,
}

/// The open file and its key.
pub(crate) struct Disk {
    path: PathBuf,
    database: Database,
    sealer: Sealer,
}

impl Disk {
    /// Opens the file, or makes it if there is none.
    pub(crate) async fn open(config: &Config, work: &Work) -> Result<(Self, Recovered), Error> {
        let path = config.dir.join("raft.db");
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let (config, what) = (config.clone(), path.clone());
            let opened = work.run(move || Self::open_once(&config, what)).await;
            let opened = opened
                .map_err(|panic| Error::Damaged { path: path.clone(), what: format!("reading it failed: {panic}") })?;
            match opened {
                Err(Error::InUse { .. }) if Instant::now() < deadline => tokio::time::sleep(LOCK_PAUSE).await,
                done => return done,
            }
        }
    }

    fn open_once(config: &Config, path: PathBuf) -> Result<(Self, Recovered), Error> {
        let failed = |error: io::Error| Error::Storage { path: path.clone(), what: error.to_string() };
        let sealer = Sealer::new(&config.storage_key);
        let disk = match config.disk.open(&path, Open::Existing) {
            Ok(file) => Self { database: open_database(&path, file)?, sealer, path },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Made whole under another name: a crash in between leaves nothing that looks like a damaged log.
                let unfinished = path.with_extension("db.new");
                let file = config.disk.open(&unfinished, Open::Empty).map_err(failed)?;
                let disk = Self { database: open_database(&path, file)?, sealer, path: path.clone() };
                disk.put_identity(config.raft_id)?;
                config.disk.rename(&unfinished, &path).map_err(failed)?;
                config.disk.sync_dir(&config.dir).map_err(failed)?;
                disk
            }
            Err(error) => return Err(failed(error)),
        };
        disk.check_identity(config.raft_id)?;
        let recovered = disk.recover()?;
        Ok((disk, recovered))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The first thing written to a new file.
    fn put_identity(&self, raft_id: u64) -> Result<(), Error> {
        let transaction = self.begin()?;
        // The tables must exist for readers.
        transaction.open_table(LOG).map_err(|error| self.table(error))?;
        self.put_meta(&transaction, IDENTITY, &Identity { format: FORMAT, raft_id })?;
        self.commit(transaction)
    }

    /// The first thing read from an old one: tells a wrong key from a damaged record.
    fn check_identity(&self, raft_id: u64) -> Result<(), Error> {
        let Some(sealed) = self.sealed_meta(IDENTITY)? else {
            return Err(self.damaged("it does not say whose it is".to_owned()));
        };
        let place = Place::whole(IDENTITY, 0, 0);
        let plain = self.sealer.open(place, &sealed).map_err(|_| Error::WrongKey { path: self.path.clone() })?;
        let identity: Identity = self.decode(IDENTITY, &plain)?;
        if identity.format != FORMAT {
            return Err(self.damaged(format!("format {} is not {FORMAT}", identity.format)));
        }
        if identity.raft_id != raft_id {
            return Err(Error::OtherMember { path: self.path.clone(), found: identity.raft_id, wanted: raft_id });
        }
        Ok(())
    }

    fn recover(&self) -> Result<Recovered, Error> {
        let purged: Option<LogId> = self.meta(PURGED)?;
        let transaction = self.database.begin_read().map_err(|error| self.failed(&error))?;
        let table = transaction.open_table(LOG).map_err(|error| self.table(error))?;
        let oldest = table.first().map_err(|error| self.storage(error))?.map_or(0, |(index, _)| index.value());
        let first = purged.as_ref().map_or(oldest, |id| id.index + 1);
        // Nothing may be missing between what is purged and the end.
        let mut expected = first;
        let mut newest = None;
        for row in table.range(first..).map_err(|error| self.storage(error))? {
            let (index, record) = row.map_err(|error| self.storage(error))?;
            if index.value() != expected {
                return Err(self.damaged(format!("log entry {expected} is missing")));
            }
            expected += 1;
            newest = Some(record);
        }
        let last = match newest {
            Some(record) => Some(self.open_entry(expected - 1, record.value())?.log_id),
            None => purged,
        };
        Ok(Recovered { vote: self.meta(VOTE)?, committed: self.meta(COMMITTED)?, purged, first, last })
    }

    /// Entries of `range` that are in the file, in order.
    pub(crate) fn read(&self, range: Range<u64>) -> Result<Vec<Entry>, Error> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(&error))?;
        let table = transaction.open_table(LOG).map_err(|error| self.table(error))?;
        let mut entries = Vec::new();
        for row in table.range(range).map_err(|error| self.storage(error))? {
            let (index, record) = row.map_err(|error| self.storage(error))?;
            entries.push(self.open_entry(index.value(), record.value())?);
        }
        Ok(entries)
    }

    pub(crate) fn begin(&self) -> Result<WriteTransaction, Error> {
        self.database.begin_write().map_err(|error| self.failed(&error))
    }

    pub(crate) fn commit(&self, transaction: WriteTransaction) -> Result<(), Error> {
        transaction.commit().map_err(|error| self.failed(&error))
    }

    pub(crate) fn put_entries(&self, transaction: &WriteTransaction, entries: &[Entry]) -> Result<(), Error> {
        let mut table = transaction.open_table(LOG).map_err(|error| self.table(error))?;
        for entry in entries {
            let LogId { index, leader_id } = &entry.log_id;
            let plain = rmp_serde::to_vec_named(entry).map_err(|error| self.failed(&error))?;
            // The term is in the clear so that it can be authenticated as part of the place.
            let mut record = leader_id.term.to_be_bytes().to_vec();
            record.extend(self.sealer.seal(Place::whole("log", leader_id.term, *index), &plain));
            table.insert(index, record.as_slice()).map_err(|error| self.storage(error))?;
        }
        Ok(())
    }

    /// Makes the log `raft_id`'s and appends `entry` under a new vote, in one commit, after `before`, which a snapshot may
    /// have carried past the log's end.
    pub(crate) fn rewrite(&self, raft_id: u64, vote: &Vote, before: Option<LogId>, entry: &Entry) -> Result<(), Error> {
        let transaction = self.begin()?;
        let log_ends_at = self.recover()?.last;
        if log_ends_at < before {
            self.remove_entries(&transaction, 0..entry.log_id.index)?;
            self.put_meta(&transaction, PURGED, &before)?;
        }
        self.put_meta(&transaction, IDENTITY, &Identity { format: FORMAT, raft_id })?;
        self.put_meta(&transaction, VOTE, vote)?;
        // Alone, everything in the log is committed.
        self.put_meta(&transaction, COMMITTED, &entry.log_id)?;
        self.put_entries(&transaction, std::slice::from_ref(entry))?;
        self.commit(transaction)
    }

    pub(crate) fn remove_entries(&self, transaction: &WriteTransaction, range: Range<u64>) -> Result<(), Error> {
        let mut table = transaction.open_table(LOG).map_err(|error| self.table(error))?;
        table.retain_in(range, |_, _| false).map_err(|error| self.storage(error))
    }

    pub(crate) fn put_meta<T: Serialize>(
        &self,
        transaction: &WriteTransaction,
        row: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let mut table = transaction.open_table(META).map_err(|error| self.table(error))?;
        let plain = rmp_serde::to_vec_named(value).map_err(|error| self.failed(&error))?;
        let sealed = self.sealer.seal(Place::whole(row, 0, 0), &plain);
        table.insert(row, sealed.as_slice()).map_err(|error| self.storage(error))?;
        Ok(())
    }

    fn meta<T: DeserializeOwned>(&self, row: &'static str) -> Result<Option<T>, Error> {
        let Some(sealed) = self.sealed_meta(row)? else { return Ok(None) };
        let plain = self
            .sealer
            .open(Place::whole(row, 0, 0), &sealed)
            .map_err(|_| self.damaged(format!("the record {row:?} is not authentic")))?;
        self.decode(row, &plain).map(Some)
    }

    fn sealed_meta(&self, row: &'static str) -> Result<Option<Vec<u8>>, Error> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(&error))?;
        let table = match transaction.open_table(META) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(self.table(error)),
        };
        let sealed = table.get(row).map_err(|error| self.storage(error))?;
        Ok(sealed.map(|guard| guard.value().to_vec()))
    }

    fn open_entry(&self, index: u64, record: &[u8]) -> Result<Entry, Error> {
        let damaged = || self.damaged(format!("log entry {index} is not authentic"));
        let (term, sealed) = record.split_first_chunk::<8>().ok_or_else(damaged)?;
        let place = Place::whole("log", u64::from_be_bytes(*term), index);
        let plain = self.sealer.open(place, sealed).map_err(|_| damaged())?;
        self.decode("log", &plain)
    }

    fn decode<T: DeserializeOwned>(&self, what: &str, plain: &[u8]) -> Result<T, Error> {
        rmp_serde::from_slice(plain)
            .map_err(|error| self.damaged(format!("the record {what:?} cannot be decoded: {error}")))
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged { path: self.path.clone(), what }
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Storage { path: self.path.clone(), what: error.to_string() }
    }

    fn storage(&self, error: StorageError) -> Error {
        match error {
            StorageError::Corrupted(what) => self.damaged(what),
            other => self.failed(&other),
        }
    }

    fn table(&self, error: TableError) -> Error {
        match error {
            TableError::Storage(error) => self.storage(error),
            other => self.damaged(other.to_string()),
        }
    }
}

fn open_database(path: &Path, file: Box<dyn DiskFile>) -> Result<Database, Error> {
    // A torn file may make redb's own checks panic; here that is an answer like any other.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(Backend(file))
    }));
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(Error::InUse { path: path.to_owned() }),
        Ok(Err(DatabaseError::Storage(StorageError::Io(source)))) if source.kind() != io::ErrorKind::InvalidData => {
            Err(Error::Storage { path: path.to_owned(), what: source.to_string() })
        }
        Ok(Err(other)) => Err(damaged(other.to_string())),
        Err(_) => Err(damaged("its structure is inconsistent".to_owned())),
    }
}

/// One file as redb uses it. It has one lock, on the whole file, which ends with it: the second of redb's three levels.
#[derive(Debug)]
struct Backend(Box<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write_at(offset, data)
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        match (start, end) {
            (Bound::Unbounded, Bound::Unbounded) => Ok(self.0.try_lock()?),
            _ => Err(BackendError::Unsupported),
        }
    }
}
