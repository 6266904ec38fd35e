//! One container inside the engine: its record, its run, and what others wait on.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_model::ContainerId;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ContainerRecord, Hub, StdinSlot, TaskFile};
use crate::error::{EngineError, Result};
use crate::logs::LogWriter;

/// What waiters watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) alive: bool,
    /// Between two runs of a restart policy: not running, but not over.
    pub(crate) restarting: bool,
    /// How often it has ended.
    pub(crate) exits: u64,
    pub(crate) exit_code: i32,
    pub(crate) error: String,
    pub(crate) removed: bool,
}

/// What belongs to one run.
#[derive(Debug, Default)]
pub(crate) struct RunIo {
    pub(crate) pumps: Vec<JoinHandle<()>>,
    /// To resize.
    pub(crate) pty: Option<Arc<OwnedFd>>,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// `data_root/containers/<id>`.
    pub(crate) dir: PathBuf,
    record: Mutex<Arc<ContainerRecord>>,
    /// Held over a whole operation (start, stop, remove…), across awaits: operations on one container come one by one.
    pub(crate) operation: tokio::sync::Mutex<()>,
    pub(crate) life: watch::Sender<Life>,
    pub(crate) hub: Hub,
    pub(crate) stdin: Arc<StdinSlot>,
    pub(crate) log: Mutex<Option<LogWriter>>,
    /// Counted up when something was written to the log.
    pub(crate) log_grown: watch::Sender<u64>,
    pub(crate) run: Mutex<RunIo>,
    /// The root of the last run, still on its way out: two mounts of one writable layer must not be at once.
    pub(crate) leaving: Mutex<Option<JoinHandle<()>>>,
    /// Cancelled when the present run (health checks) or the wait for a restart is over.
    pub(crate) run_token: Mutex<CancellationToken>,
    /// Secrets of a task, in memory only: gone with the daemon, brought again by the agent.
    pub(crate) task_files: Mutex<Vec<TaskFile>>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    pub(crate) fn new(dir: PathBuf, record: ContainerRecord) -> Self {
        let life = Life { exit_code: record.state.exit_code, ..Life::default() };
        Self {
            id: record.id.clone(),
            dir,
            record: Mutex::new(Arc::new(record)),
            operation: tokio::sync::Mutex::default(),
            life: watch::channel(life).0,
            hub: Hub::default(),
            stdin: Arc::default(),
            log: Mutex::default(),
            log_grown: watch::channel(0).0,
            run: Mutex::default(),
            leaving: Mutex::default(),
            run_token: Mutex::default(),
            task_files: Mutex::default(),
        }
    }

    pub(crate) fn record(&self) -> Arc<ContainerRecord> {
        Arc::clone(&locked(&self.record))
    }

    pub(crate) fn name(&self) -> String {
        self.record().name.clone()
    }

    /// Changes the record in memory alone.
    pub(crate) fn change(&self, change: impl FnOnce(&mut ContainerRecord)) -> Arc<ContainerRecord> {
        let mut record = locked(&self.record);
        change(Arc::make_mut(&mut record));
        Arc::clone(&record)
    }

    /// Changes the record and writes it down.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<Arc<ContainerRecord>> {
        let record = self.change(change);
        save(&self.dir, &record)?;
        Ok(record)
    }

    /// A token of the run or wait that begins now; the one before is cancelled.
    pub(crate) fn renew_token(&self) -> CancellationToken {
        let token = CancellationToken::new();
        std::mem::replace(&mut *locked(&self.run_token), token.clone()).cancel();
        token
    }

    pub(crate) fn cancel_token(&self) {
        locked(&self.run_token).cancel();
    }

    pub(crate) fn live(&self, change: impl FnOnce(&mut Life)) {
        self.life.send_modify(change);
    }
}

/// By rename, so that a daemon killed at any instant leaves the old or the new one. Not synced: after a crash of the host
/// the container is not running anyway, and the file system orders the rename after the data.
pub(crate) fn save(dir: &Path, record: &ContainerRecord) -> Result<()> {
    let path = dir.join("config.json");
    let temporary = dir.join("config.json.new");
    let text = serde_json::to_vec(record).map_err(|e| EngineError::Internal(format!("container record: {e}")))?;
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(EngineError::file("failed to write", path))
}

pub(crate) fn load(dir: &Path) -> Result<ContainerRecord> {
    let path = dir.join("config.json");
    let text = std::fs::read(&path).map_err(EngineError::file("failed to read", &path))?;
    serde_json::from_slice(&text).map_err(|e| EngineError::Internal(format!("{}: {e}", path.display())))
}
