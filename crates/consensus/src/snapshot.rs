//! Snapshot files: `snapshots/<term>-<index>.snap`, the whole store with the log id and membership it stands for.
//!
//! A file is a magic line, then frames of `length || sealed bytes`: first the head, then the store in parts. It is written
//! under a temporary name, flushed, renamed, and the directory flushed; only then are older ones removed. Numbers in the
//! frames' places make a cut, joined or renamed file not open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::disk::{Disk, DiskFile, Open};
use crate::error::Error;
use crate::seal::{OVERHEAD, Place, Sealer};
use crate::types::{LogId, Snapshot, SnapshotData, SnapshotMeta};

const MAGIC: &[u8; 8] = b"SKEPSNP1";
const TABLE: &str = "snapshot";
/// Bytes of the store in one frame.
const PART_BYTES: usize = 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Head {
    meta: SnapshotMeta,
    store_bytes: u64,
}

/// The directory of snapshots of one manager. Synchronous; callers choose the thread.
#[derive(Clone)]
pub(crate) struct SnapshotDir {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    sealer: Arc<Sealer>,
}

impl SnapshotDir {
    /// Makes the directories and removes what an interrupted write left.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let (dir, disk) = (config.dir.join("snapshots"), config.disk.clone());
        let failed = |source| Error::Directory { path: dir.clone(), source };
        disk.make_dir(&dir).map_err(failed)?;
        for path in disk.list(&dir).map_err(failed)? {
            if path.extension().is_some_and(|extension| extension == "tmp") {
                disk.remove(&path).map_err(failed)?;
            }
        }
        Ok(Self { dir, disk, sealer: Arc::new(Sealer::new(&config.storage_key)) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn write(&self, meta: &SnapshotMeta, store: &[u8]) -> Result<(), Error> {
        let at = position(meta);
        let path = self.dir.join(file_name(at));
        let temporary = path.with_extension("tmp");
        let failed = |error: io::Error| Error::Storage { path: path.clone(), what: error.to_string() };
        let written = self.write_file(&temporary, meta, store).and_then(|()| {
            self.disk.rename(&temporary, &path)?;
            self.disk.sync_dir(&self.dir)
        });
        if let Err(error) = written {
            // Best effort: the next open removes it too.
            let _ = self.disk.remove(&temporary);
            return Err(failed(error));
        }
        for (other, old) in self.files().map_err(failed)? {
            if other != at {
                self.disk.remove(&old).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn write_file(&self, path: &Path, meta: &SnapshotMeta, store: &[u8]) -> io::Result<()> {
        let file = self.disk.open(path, Open::Empty)?;
        file.write_at(0, MAGIC)?;
        let mut end = MAGIC.len() as u64;
        let head = Head { meta: meta.clone(), store_bytes: store.len() as u64 };
        let head = rmp_serde::to_vec_named(&head).map_err(io::Error::other)?;
        let parts: Vec<&[u8]> = std::iter::once(head.as_slice()).chain(store.chunks(PART_BYTES)).collect();
        for (number, part) in parts.iter().enumerate() {
            let sealed = self.sealer.seal(place(position(meta), number, number + 1 == parts.len()), part);
            let length = u32::try_from(sealed.len()).map_err(io::Error::other)?;
            let frame = [length.to_be_bytes().as_slice(), &sealed].concat();
            file.write_at(end, &frame)?;
            end += frame.len() as u64;
        }
        file.sync()
    }

    /// The newest snapshot, if there is one. A damaged one is an error, not a reason to start empty.
    pub(crate) fn read(&self) -> Result<Option<Snapshot>, Error> {
        let files = self.files().map_err(|source| Error::Directory { path: self.dir.clone(), source })?;
        match files.into_iter().max() {
            Some((at, path)) => self.read_file(at, &path).map(Some),
            None => Ok(None),
        }
    }

    fn read_file(&self, at: (u64, u64), path: &Path) -> Result<Snapshot, Error> {
        let damaged = |what: &str| Error::Damaged { path: path.to_owned(), what: what.to_owned() };
        let short = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
            _ => Error::Storage { path: path.to_owned(), what: error.to_string() },
        };
        let mut file = Reader { file: self.disk.open(path, Open::Existing).map_err(short)?, at: 0 };
        let mut magic = [0; MAGIC.len()];
        file.fill(&mut magic).map_err(short)?;
        if &magic != MAGIC {
            return Err(damaged("it is not a snapshot"));
        }
        // Whether a frame is the last is not stored: both are tried, and only one is authentic.
        let mut frames = 0;
        let mut next = || -> Result<(Vec<u8>, bool), Error> {
            let mut length = [0; 4];
            file.fill(&mut length).map_err(short)?;
            let length = u32::from_be_bytes(length) as usize;
            if length > PART_BYTES * 2 + OVERHEAD {
                return Err(damaged("a part is too long"));
            }
            let mut sealed = vec![0; length];
            file.fill(&mut sealed).map_err(short)?;
            let opened = [false, true]
                .into_iter()
                .find_map(|last| Some((self.sealer.open(place(at, frames, last), &sealed).ok()?, last)));
            frames += 1;
            opened.ok_or_else(|| match frames {
                1 => Error::WrongKey { path: path.to_owned() },
                _ => damaged("a part is not authentic"),
            })
        };
        let (head, mut last) = next()?;
        let head: Head = rmp_serde::from_slice(&head).map_err(|error| damaged(&error.to_string()))?;
        let mut store = Vec::new();
        while !last {
            let (part, ends) = next()?;
            store.extend(part);
            last = ends;
        }
        if store.len() as u64 != head.store_bytes {
            return Err(damaged("its parts do not add up"));
        }
        Ok(Snapshot { meta: head.meta, snapshot: SnapshotData(Bytes::from(store)) })
    }

    fn files(&self) -> io::Result<Vec<((u64, u64), PathBuf)>> {
        let mut files = Vec::new();
        for path in self.disk.list(&self.dir)? {
            if let Some(at) = path.file_name().and_then(|name| parse_name(name.to_str()?)) {
                files.push((at, path));
            }
        }
        Ok(files)
    }
}

struct Reader {
    file: Box<dyn DiskFile>,
    at: u64,
}

impl Reader {
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(self.at, out)?;
        self.at += out.len() as u64;
        Ok(())
    }
}

/// (term, index) of the last entry in the snapshot.
fn position(meta: &SnapshotMeta) -> (u64, u64) {
    meta.last_log_id.map_or((0, 0), |LogId { leader_id, index }| (leader_id.term, index))
}

fn file_name((term, index): (u64, u64)) -> String {
    format!("{term}-{index}.snap")
}

fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (term, index) = name.strip_suffix(".snap")?.split_once('-')?;
    Some((term.parse().ok()?, index.parse().ok()?))
}

fn place(at: (u64, u64), number: usize, last: bool) -> Place<'static> {
    Place { table: TABLE, term: at.0, index: at.1, part: number as u64, last }
}
