//! A member's certificates on disk, under swarmkit's file names. Written beside and renamed, so that a crash leaves either
//! the old or the new. Private keys are sealed while managers are to be locked (`lock.rs`).

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skep_model::cluster::UnlockKey;
use skep_model::node::Role;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::lock::{Held, Lock, Secret, parse_unlock_key};
use super::root::NodeKey;
use super::seal;
use crate::error::{NodeError, Result};
use crate::transport::message::IssueReply;

/// In front of a private key that is sealed; the certificate behind it is not.
const SEALED_BEGIN: &str = "-----BEGIN SKEP SEALED PRIVATE KEY-----\n";
const SEALED_END: &str = "\n-----END SKEP SEALED PRIVATE KEY-----\n";
/// In front of the log's key when it is sealed; a clear one is 32 bytes and nothing else.
const SEALED_LOG_KEY: &[u8] = b"SKEPSEAL";
const NODE_KEY: &str = "swarm-node.key";
const LOG_KEY: &str = "raft.key";

/// One member's; clones share the lock.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    directory: PathBuf,
    lock: Lock,
    exposed: Arc<Notify>,
}

/// Writes a file only root can read, whole or not at all.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(NodeError::file("write", path))
}

/// [`write_private`], and the name is on disk as well: what comes next may rely on it.
pub(super) fn write_durable(path: &Path, contents: &[u8]) -> Result<()> {
    write_private(path, contents)?;
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(NodeError::file("write", parent))
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NodeError::file("read", path)(error)),
    }
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(NodeError::file("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl CertificateFiles {
    pub(crate) fn new(swarm_dir: &Path) -> Self {
        let directory = swarm_dir.join("certificates");
        Self { lock: Lock::new(directory.join("swarm-lock.json")), directory, exposed: Arc::default() }
    }

    #[cfg(test)]
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Key and certificate go in one file, so that they can never be of two different generations. A worker's key is never
    /// sealed: nobody could unlock it.
    pub(crate) fn save(&self, root_pem: &str, cert_pem: &str, key_pem: &str, role: Role) -> Result<()> {
        let held = self.lock.held();
        let secret = held.secret().filter(|_| role == Role::Manager);
        write_private(&self.path("swarm-root-ca.crt"), root_pem.as_bytes())?;
        write_durable(&self.path(NODE_KEY), node_key_file(secret, key_pem, cert_pem).as_bytes())?;
        write_private(&self.path("swarm-node.crt"), cert_pem.as_bytes())
    }

    /// Saves what was issued to `key`, locked as the swarm has it from the first byte on.
    pub(crate) fn take(&self, reply: &IssueReply, key: &NodeKey) -> Result<()> {
        if reply.role == Role::Manager
            && let Some(lock) = &reply.lock
        {
            self.follow(lock.unlock_key.as_ref(), lock.version)?;
        }
        self.save(&reply.root_pem, &reply.cert_pem, &key.pem(), reply.role)
    }

    /// (root, certificate, key), or `None` where nothing was saved. [`NodeError::Locked`] if they cannot be read yet.
    pub(crate) fn load(&self) -> Result<Option<(String, String, String)>> {
        let held = self.lock.held();
        let read = |name: &str| match fs::read_to_string(self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NodeError::file("read", self.path(name))(error)),
        };
        let (Some(root), Some(both)) = (read("swarm-root-ca.crt")?, read(NODE_KEY)?) else { return Ok(None) };
        let Some(at) = both.find("-----BEGIN CERTIFICATE-----") else { return Ok(None) };
        let (key, certificate) = both.split_at(at);
        Ok(Some((root, certificate.to_owned(), open_node_key(&held, key)?)))
    }

    /// The key of the raft log, made on first use.
    pub(crate) fn log_key(&self) -> Result<[u8; 32]> {
        let held = self.lock.held();
        if let Some(stored) = read_if_there(&self.path(LOG_KEY))? {
            return open_log_key(&held, &stored);
        }
        let key: [u8; 32] = rand::random();
        write_durable(&self.path(LOG_KEY), &log_key_file(held.secret(), &key))?;
        Ok(key)
    }

    /// Of a log that is gone.
    pub(crate) fn forget_log_key(&self) -> Result<()> {
        remove_if_there(&self.path(LOG_KEY))
    }

    /// Nothing on disk is this member's any more.
    pub(crate) fn forget(&self) {
        *self.lock.held() = Held::default();
    }

    /// `docker swarm unlock`: the keys can be read from now on.
    pub(crate) fn unlock(&self, key: &Secret) -> Result<()> {
        self.lock.open(&mut self.lock.held(), key)
    }

    /// Seals, re-seals or opens the keys on disk as the swarm has it (`None`: not locked) as of `version` of its object.
    pub(crate) fn follow(&self, key: Option<&UnlockKey>, version: u64) -> Result<()> {
        let mut held = self.lock.held();
        self.lock.recall(&mut held)?;
        let key = key.map(|key| parse_unlock_key(&key.0)).transpose()?;
        if !held.differs(key.as_ref(), version) {
            return Ok(());
        }
        let Some(key) = key else {
            self.rewrite(&held, None)?;
            let was_locked = held.secret().is_some();
            self.lock.discard(&mut held, version)?;
            if was_locked {
                tracing::info!("this manager's keys are not locked any more");
            }
            return Ok(());
        };
        let was_clear = held.secret().is_none();
        self.lock.close(&mut held, &key, version)?;
        self.rewrite(&held, held.secret())?;
        held.settle(key, version);
        tracing::info!("this manager's keys are locked with the swarm's unlock key");
        if was_clear && self.path(NODE_KEY).exists() {
            self.exposed.notify_one();
        }
        Ok(())
    }

    /// The keys of a manager that is one no more are clear again, and its lock is forgotten.
    pub(crate) fn unseal(&self) -> Result<()> {
        let mut held = self.lock.held();
        self.rewrite(&held, None)?;
        self.lock.remove(&mut held)
    }

    /// Waits until the node should ask for a new certificate: its key has been on disk in the clear, and is to be of no use
    /// to who finds it there.
    pub(crate) async fn exposed(&self) {
        self.exposed.notified().await;
    }

    fn rewrite(&self, held: &Held, secret: Option<&[u8]>) -> Result<()> {
        let as_wanted = |stored: &[u8], mark: &[u8]| stored.starts_with(mark) == secret.is_some();
        if let Some(stored) = read_if_there(&self.path(LOG_KEY))?
            && !as_wanted(&stored, SEALED_LOG_KEY)
        {
            let key = open_log_key(held, &stored)?;
            write_durable(&self.path(LOG_KEY), &log_key_file(secret, &key))?;
        }
        if let Some(stored) = read_if_there(&self.path(NODE_KEY))?
            && !as_wanted(&stored, SEALED_BEGIN.as_bytes())
        {
            let both = String::from_utf8_lossy(&stored);
            let at = both.find("-----BEGIN CERTIFICATE-----").unwrap_or(both.len());
            let (key, certificate) = both.split_at(at);
            let key = Zeroizing::new(open_node_key(held, key)?);
            write_durable(&self.path(NODE_KEY), node_key_file(secret, &key, certificate).as_bytes())?;
        }
        Ok(())
    }
}

fn node_key_file(secret: Option<&[u8]>, key_pem: &str, cert_pem: &str) -> String {
    match secret {
        None => format!("{key_pem}{cert_pem}"),
        Some(secret) => {
            let sealed = STANDARD.encode(seal::seal(secret, NODE_KEY, key_pem.as_bytes()));
            format!("{SEALED_BEGIN}{sealed}{SEALED_END}{cert_pem}")
        }
    }
}

fn open_node_key(held: &Held, stored: &str) -> Result<String> {
    let Some(text) = stored.strip_prefix(SEALED_BEGIN) else { return Ok(stored.to_owned()) };
    let secret = held.secret().ok_or(NodeError::Locked)?;
    text.strip_suffix(SEALED_END)
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|sealed| seal::open(secret, NODE_KEY, &sealed))
        .and_then(|key| String::from_utf8(key).ok())
        .ok_or_else(|| NodeError::Certificate(format!("{NODE_KEY} is damaged")))
}

fn log_key_file(secret: Option<&[u8]>, key: &[u8; 32]) -> Vec<u8> {
    match secret {
        None => key.to_vec(),
        Some(secret) => [SEALED_LOG_KEY, &seal::seal(secret, LOG_KEY, key)].concat(),
    }
}

fn open_log_key(held: &Held, stored: &[u8]) -> Result<[u8; 32]> {
    let damaged = || NodeError::Internal(format!("{LOG_KEY} is damaged"));
    let Some(sealed) = stored.strip_prefix(SEALED_LOG_KEY) else { return stored.try_into().map_err(|_| damaged()) };
    let secret = held.secret().ok_or(NodeError::Locked)?;
    seal::open(secret, LOG_KEY, sealed).and_then(|key| key.try_into().ok()).ok_or_else(damaged)
}
