//! A member's certificates on disk, under swarmkit's file names. Written beside and renamed, so that a crash leaves either
//! the old or the new.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{NodeError, Result};

#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    directory: PathBuf,
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

impl CertificateFiles {
    pub(crate) fn new(swarm_dir: &Path) -> Self {
        Self { directory: swarm_dir.join("certificates") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Key and certificate go in one file, so that they can never be of two different generations.
    pub(crate) fn save(&self, root_pem: &str, cert_pem: &str, key_pem: &str) -> Result<()> {
        write_private(&self.path("swarm-root-ca.crt"), root_pem.as_bytes())?;
        write_private(&self.path("swarm-node.key"), format!("{key_pem}{cert_pem}").as_bytes())?;
        write_private(&self.path("swarm-node.crt"), cert_pem.as_bytes())
    }

    /// (root, certificate, key), or `None` where nothing was saved.
    pub(crate) fn load(&self) -> Result<Option<(String, String, String)>> {
        let read = |name: &str| match fs::read_to_string(self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NodeError::file("read", self.path(name))(error)),
        };
        let (Some(root), Some(both)) = (read("swarm-root-ca.crt")?, read("swarm-node.key")?) else { return Ok(None) };
        let Some(at) = both.find("-----BEGIN CERTIFICATE-----") else { return Ok(None) };
        let (key, certificate) = both.split_at(at);
        Ok(Some((root, certificate.to_owned(), key.to_owned())))
    }

    /// The key of the raft log, made on first use.
    pub(crate) fn log_key(&self) -> Result<[u8; 32]> {
        let path = self.path("raft.key");
        match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map_err(|_| NodeError::Internal("raft.key is not 32 bytes".into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key: [u8; 32] = rand::random();
                write_private(&path, &key)?;
                Ok(key)
            }
            Err(error) => Err(NodeError::file("read", path)(error)),
        }
    }
}
