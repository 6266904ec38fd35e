//! Autolock: a manager's keys on disk are of no use without the swarm's unlock key, which is on no disk in the clear.
//!
//! The keys (the node's TLS key, the log's key) are sealed under a random lock secret, and `swarm-lock.json` holds that secret
//! sealed under the unlock key. A new unlock key therefore rewrites one small file, whole or not at all. Order does the rest:
//! the lock file is on disk before the first key is sealed under it and goes after the last one is clear again, and each key
//! says itself whether it is sealed, so that a crash at any point leaves keys that open.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use skep_model::cluster::UnlockKey;
use zeroize::Zeroizing;

use super::files::{read_if_there, remove_if_there, write_durable};
use super::seal;
use crate::error::{NodeError, Result};

/// swarmkit `humanReadablePrefix`.
const PREFIX: &str = "SWMKEY-1-";
/// swarmkit `GenerateSecretKey`.
const KEY_BYTES: usize = 32;

pub(crate) type Secret = Zeroizing<Vec<u8>>;

pub(crate) fn new_unlock_key() -> UnlockKey {
    let bytes = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
    UnlockKey(format!("{PREFIX}{}", STANDARD_NO_PAD.encode(bytes.as_slice())))
}

/// Form only (swarmkit `ParseHumanReadableKey`); whether it is the right one shows when it is used.
pub(crate) fn parse_unlock_key(text: &str) -> Result<Secret> {
    text.strip_prefix(PREFIX)
        .and_then(|digits| STANDARD_NO_PAD.decode(digits).ok())
        .map(Zeroizing::new)
        .ok_or_else(|| NodeError::BadRequest("invalid key string".into()))
}

/// `swarm-lock.json`.
#[derive(Clone, Default, Serialize, Deserialize)]
struct LockFile {
    /// The cluster object this follows: an older one, seen while the log is replayed, moves nothing.
    version: u64,
    /// Base64 of the lock secret under the unlock key; absent while managers are not locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
}

#[derive(Default)]
pub(super) struct Held {
    /// What keys are sealed under, once it is known.
    secret: Option<Secret>,
    /// With which unlock key (or none) every key on disk is known to be: not after a start, which a crash may have preceded.
    settled: Option<Option<Secret>>,
    version: u64,
}

impl Held {
    pub(super) fn secret(&self) -> Option<&[u8]> {
        self.secret.as_ref().map(|secret| secret.as_slice())
    }

    /// Whether following `key` as of `version` would change anything.
    pub(super) fn differs(&self, key: Option<&Secret>, version: u64) -> bool {
        version >= self.version && self.settled.as_ref().map(Option::as_ref) != Some(key)
    }

    /// Every key is sealed, and opens with this unlock key.
    pub(super) fn settle(&mut self, key: Secret, version: u64) {
        (self.settled, self.version) = (Some(Some(key)), version);
    }
}

/// The lock of one member; clones share it.
#[derive(Clone)]
pub(super) struct Lock {
    path: PathBuf,
    held: Arc<Mutex<Held>>,
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").field("path", &self.path).finish_non_exhaustive()
    }
}

fn purpose(version: u64) -> String {
    format!("skep: lock secret of version {version}")
}

impl Lock {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, held: Arc::default() }
    }

    /// Keys are read and written under this.
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<LockFile> {
        let Some(bytes) = read_if_there(&self.path)? else { return Ok(LockFile::default()) };
        serde_json::from_slice(&bytes)
            .map_err(|e| NodeError::Internal(format!("{} is damaged: {e}", self.path.display())))
    }

    fn write(&self, file: &LockFile) -> Result<()> {
        let json = serde_json::to_vec(file).map_err(|e| NodeError::Internal(e.to_string()))?;
        write_durable(&self.path, &json)
    }

    /// Learns from the disk which version it follows.
    pub(super) fn recall(&self, held: &mut Held) -> Result<()> {
        if held.secret.is_none() {
            held.version = self.read()?.version;
        }
        Ok(())
    }

    /// With the right unlock key the keys can be read from now on; with another one nothing changes.
    pub(super) fn open(&self, held: &mut Held, key: &Secret) -> Result<()> {
        let file = self.read()?;
        let sealed = file.sealed.and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
        let secret = seal::open(key, &purpose(file.version), &sealed).ok_or(NodeError::InvalidUnlockKey)?;
        *held = Held { secret: Some(Zeroizing::new(secret)), settled: None, version: file.version };
        Ok(())
    }

    /// The first half of locking, and all of changing the unlock key: the lock secret under `key` is on disk.
    pub(super) fn close(&self, held: &mut Held, key: &Secret, version: u64) -> Result<()> {
        let fresh = || Zeroizing::new(rand::random::<[u8; KEY_BYTES]>().to_vec());
        let secret = held.secret.clone().unwrap_or_else(fresh);
        let sealed = Some(STANDARD.encode(seal::seal(key, &purpose(version), &secret)));
        self.write(&LockFile { version, sealed })?;
        held.secret = Some(secret);
        Ok(())
    }

    /// This member has no lock any more, nor had one.
    pub(super) fn remove(&self, held: &mut Held) -> Result<()> {
        remove_if_there(&self.path)?;
        *held = Held::default();
        Ok(())
    }

    /// The last half of unlocking for good: no key is sealed any more.
    pub(super) fn discard(&self, held: &mut Held, version: u64) -> Result<()> {
        if self.path.exists() {
            self.write(&LockFile { version, sealed: None })?;
        }
        *held = Held { secret: None, settled: Some(None), version };
        Ok(())
    }
}
