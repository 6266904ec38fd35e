//! A disk in memory that loses what was not made durable: what tests and the simulator put beneath a manager.
//!
//! Decides what is left after a crash. Bytes written since the last [`DiskFile::sync`] of their file, and names changed since
//! the last [`Disk::sync_dir`], may be there, or not, or (bytes) in part, sector by sector and in any order; what was
//! synced is there. Names survive in the order in which they were changed, as on a journalling file system. Handles of
//! before a crash fail for ever, so that what a crashed manager still does reaches nobody.
//!
//! Everything follows from the calls and the seed of the crash. Nothing here reads a clock or rolls dice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::{Disk, DiskFile, Open};

/// What a disk writes at once or not at all.
const SECTOR_BYTES: usize = 512;

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing: the power failed.
    Lose,
    /// Everything: the process died.
    Keep,
    /// Any part of it, torn by sectors, as the seed says.
    Tear(u64),
}

/// What is wrong with the disk for the time being. Reads go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing more fits: writing and growing answer `StorageFull`.
    Full,
    /// Writing and syncing fail.
    Broken,
}

/// One machine's disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    next_file: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names since their directory was synced, oldest first.
    renamings: Vec<Renaming>,
    dirs: BTreeSet<PathBuf>,
    locked: BTreeSet<u64>,
    /// Handles of an earlier one are dead.
    boot: u64,
    fault: Option<Fault>,
    latency: Duration,
    operations: u64,
    crash_at: Option<(u64, Crash)>,
}

#[derive(Default)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

/// A change of names, whole or not at all.
struct Renaming {
    gone: Option<PathBuf>,
    there: Option<(PathBuf, u64)>,
}

impl Renaming {
    fn carry_out(&self, names: &mut BTreeMap<PathBuf, u64>) {
        if let Some(path) = &self.gone {
            names.remove(path);
        }
        if let Some((path, file)) = &self.there {
            names.insert(path.clone(), *file);
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let path = self.gone.as_ref().or(self.there.as_ref().map(|(path, _)| path));
        path.is_some_and(|path| path.parent() == Some(dir))
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimDisk")
            .field("files", &state.names.len())
            .field("fault", &state.fault)
            .finish_non_exhaustive()
    }
}

impl SimDisk {
    /// Ends the machine's life at once. The next manager opens what is left.
    pub fn crash(&self, how: Crash) {
        self.state().crash(how);
    }

    /// Crashes instead of carrying out the operation number `operation` of all that change something, counted from 0 by
    /// [`operations`](Self::operations).
    pub fn crash_at(&self, operation: u64, how: Crash) {
        self.state().crash_at = Some((operation, how));
    }

    /// How many operations that change something were asked for.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// What is wrong from now on; `None` mends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// How long each piece of work takes from now on: one commit of the log, one snapshot.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic within leaves at worst half a simulated write behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Called before each operation that changes something.
    fn change(&mut self, boot: u64, grows: bool) -> io::Result<()> {
        self.alive(boot)?;
        let number = self.operations;
        self.operations += 1;
        if let Some((_, how)) = self.crash_at.take_if(|(at, _)| *at == number) {
            self.crash(how);
            return self.alive(boot);
        }
        match self.fault {
            Some(Fault::Full) if grows => Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device")),
            Some(Fault::Broken) => Err(io::Error::other("input/output error")),
            _ => Ok(()),
        }
    }

    fn alive(&self, boot: u64) -> io::Result<()> {
        if boot == self.boot { Ok(()) } else { Err(io::Error::other("the machine has crashed")) }
    }

    fn crash(&mut self, how: Crash) {
        self.boot += 1;
        self.locked.clear();
        self.crash_at = None;
        let mut dice = Dice(match how {
            Crash::Tear(seed) => seed,
            Crash::Lose | Crash::Keep => 0,
        });
        let kept = match how {
            Crash::Lose => 0,
            Crash::Keep => self.renamings.len(),
            Crash::Tear(_) => dice.below(self.renamings.len() + 1),
        };
        for renaming in self.renamings.drain(..).take(kept) {
            renaming.carry_out(&mut self.durable_names);
        }
        self.names = self.durable_names.clone();
        self.forget_unnamed();
        for contents in self.files.values_mut() {
            for change in std::mem::take(&mut contents.unsynced) {
                match how {
                    Crash::Lose => {}
                    Crash::Keep => change.carry_out(&mut contents.durable, |_| true),
                    Crash::Tear(_) => match dice.below(3) {
                        0 => {}
                        1 => change.carry_out(&mut contents.durable, |_| true),
                        _ => change.carry_out(&mut contents.durable, |_| dice.below(2) == 0),
                    },
                }
            }
            contents.now = contents.durable.clone();
        }
    }

    fn rename(&mut self, gone: Option<&Path>, there: Option<(&Path, u64)>) {
        let there = there.map(|(path, file)| (path.to_owned(), file));
        let renaming = Renaming { gone: gone.map(Path::to_owned), there };
        renaming.carry_out(&mut self.names);
        self.renamings.push(renaming);
    }

    /// Frees what no crash can bring back. Managers keep no handle on a file without a name.
    fn forget_unnamed(&mut self) {
        let in_flight = self.renamings.iter().filter_map(|renaming| renaming.there.as_ref().map(|(_, file)| file));
        let named: BTreeSet<u64> =
            self.names.values().chain(self.durable_names.values()).chain(in_flight).copied().collect();
        self.files.retain(|file, _| named.contains(file));
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn contents(&mut self, file: u64) -> &mut Contents {
        self.files.entry(file).or_default()
    }

    fn edit(&mut self, file: u64, change: Change) {
        let contents = self.contents(file);
        change.carry_out(&mut contents.now, |_| true);
        contents.unsynced.push(change);
    }
}

impl Change {
    /// On those sectors of it that `reach` the disk.
    fn carry_out(&self, bytes: &mut Vec<u8>, mut reach: impl FnMut(usize) -> bool) {
        match self {
            Self::Length(length) => {
                if reach(0) {
                    bytes.resize(*length, 0);
                }
            }
            Self::Write { offset, data } => {
                let (mut at, end) = (*offset, offset + data.len());
                while at < end {
                    let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                    if reach(at) {
                        if bytes.len() < next {
                            bytes.resize(next, 0);
                        }
                        bytes[at..next].copy_from_slice(&data[at - offset..next - offset]);
                    }
                    at = next;
                }
            }
        }
    }
}

impl Disk for SimDisk {
    /// Directories survive a crash as soon as they are made.
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state();
        Ok(state.names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let boot = state.boot;
        let file = match (how, state.find(path)) {
            (_, Err(_)) if !path.parent().is_some_and(|dir| state.dirs.contains(dir)) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (Open::Existing, found) => found?,
            (Open::Empty, Ok(file)) => {
                state.change(boot, false)?;
                state.edit(file, Change::Length(0));
                file
            }
            (Open::Empty, Err(_)) => {
                state.change(boot, true)?;
                let file = state.next_file;
                state.next_file += 1;
                state.rename(None, Some((path, file)));
                file
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), file, boot, locks: Mutex::new(false) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let boot = state.boot;
        state.change(boot, false)?;
        let file = state.find(from)?;
        state.rename(Some(from), Some((to, file)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let boot = state.boot;
        state.change(boot, false)?;
        state.find(path)?;
        state.rename(Some(path), None);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        let boot = state.boot;
        state.change(boot, false)?;
        let changes = std::mem::take(&mut state.renamings);
        let (synced, left): (Vec<_>, Vec<_>) = changes.into_iter().partition(|renaming| renaming.is_in(dir));
        state.renamings = left;
        for renaming in synced {
            renaming.carry_out(&mut state.durable_names);
        }
        state.forget_unnamed();
        Ok(())
    }

    fn latency(&self) -> Duration {
        self.state().latency
    }
}

struct SimFile {
    disk: SimDisk,
    file: u64,
    boot: u64,
    locks: Mutex<bool>,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("file", &self.file).field("boot", &self.boot).finish_non_exhaustive()
    }
}

impl SimFile {
    fn reading<T>(&self, read: impl FnOnce(&Contents) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        state.alive(self.boot)?;
        read(state.contents(self.file))
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.reading(|contents| Ok(contents.now.len() as u64))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.reading(|contents| {
            let range = usize::try_from(offset).ok().and_then(|from| Some(from..from.checked_add(out.len())?));
            let found = range.and_then(|range| contents.now.get(range));
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.change(self.boot, true)?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        state.edit(self.file, Change::Write { offset, data: data.to_vec() });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut state = self.disk.state();
        let grows = state.contents(self.file).now.len() < len;
        state.change(self.boot, grows)?;
        state.edit(self.file, Change::Length(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.change(self.boot, false)?;
        let contents = state.contents(self.file);
        for change in std::mem::take(&mut contents.unsynced) {
            change.carry_out(&mut contents.durable, |_| true);
        }
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.disk.state();
        state.alive(self.boot)?;
        let locked = state.locked.insert(self.file);
        if locked {
            *self.locks.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
        Ok(locked)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let locks = *self.locks.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.disk.state();
        if locks && state.boot == self.boot {
            state.locked.remove(&self.file);
        }
    }
}

/// SplitMix64: what a crash leaves follows from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
