//! The registry side: a client of the distribution API (`/v2/`), and pull, push and inspection over it.
//!
//! Decides which host stands for a reference (mirrors, plain HTTP), how it is authenticated to, what is tried again and in
//! which words a failure is told. Our own client over reqwest: Docker's fallbacks from HTTPS to HTTP, its error texts and
//! resuming of blobs are what tools see, and no client crate has them.

mod auth;
mod endpoint;
mod inspect;
pub(in crate::image) mod manifest;
mod pull;
mod push;
mod session;
mod words;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use super::types::ImageStoreConfig;
use super::{ImageError, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence for this long on an open connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const USER_AGENT: &str = concat!("skep/", env!("CARGO_PKG_VERSION"));

/// What all pulls and pushes of this host share.
#[derive(Debug)]
pub(super) struct Registries {
    insecure: Vec<endpoint::Insecure>,
    mirrors: Vec<String>,
    /// Made at first use: reading the host's root certificates takes memory that an idle node need not spend.
    secure_client: OnceLock<reqwest::Client>,
    insecure_client: OnceLock<reqwest::Client>,
    downloads: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    /// One pull of a reference, and one making of a layer, at a time.
    locks: Mutex<BTreeMap<String, Weak<AsyncMutex<()>>>>,
}

impl Registries {
    pub(super) fn new(config: &ImageStoreConfig) -> Result<Self> {
        let insecure = config.insecure_registries.iter().map(|text| endpoint::Insecure::parse(text));
        Ok(Self {
            insecure: insecure.collect::<Result<_>>()?,
            mirrors: config.registry_mirrors.iter().map(|m| m.trim_end_matches('/').to_owned()).collect(),
            secure_client: OnceLock::new(),
            insecure_client: OnceLock::new(),
            downloads: Arc::new(Semaphore::new(config.max_concurrent_downloads.max(1))),
            uploads: Arc::new(Semaphore::new(config.max_concurrent_uploads.max(1))),
            locks: Mutex::default(),
        })
    }

    fn client(&self, insecure: bool) -> Result<reqwest::Client> {
        let cell = if insecure { &self.insecure_client } else { &self.secure_client };
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        let builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            // reqwest's own read timeout would end an upload that takes longer; ours is around what waits for the registry.
            .tcp_user_timeout(READ_TIMEOUT)
            .tcp_keepalive(READ_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(20));
        // Registries named insecure are in the local network; Go leaves loopback out of proxies as well.
        let builder = if insecure { builder.tls_danger_accept_invalid_certs(true).no_proxy() } else { builder };
        let client = builder.build().map_err(|error| {
            ImageError::Registry(format!("cannot set up TLS with this host's certificates: {}", words::chain(&error)))
        })?;
        Ok(cell.get_or_init(|| client).clone())
    }

    fn lock(&self, key: &str) -> Arc<AsyncMutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(AsyncMutex::default());
        locks.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}
