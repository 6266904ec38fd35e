//! The upgrade in place: the state in a memory file, every descriptor kept, `execve`, and the state read back.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Process, Server, block_signals};
use crate::supervisor::protocol::Exit;
use crate::sys;

/// What a new program needs to know to go on; descriptors by number.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    listener: RawFd,
    lock: RawFd,
    daemon: Option<RawFd>,
    processes: Vec<SavedProcess>,
    #[serde(default)]
    leases: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedProcess {
    id: String,
    exec: String,
    pid: i32,
    started_at: i64,
    exit: Option<Exit>,
    stdin: Option<RawFd>,
    stdout: Option<RawFd>,
    stderr: Option<RawFd>,
    pty: Option<RawFd>,
}

impl Server {
    /// Replaces the program; comes back only with the reason why not. The connection stays open over it: the new program
    /// answers nothing to the request, the daemon says hello again.
    pub(super) fn upgrade(&mut self, exe: &str) -> String {
        if !self.jobs.is_empty() {
            return "a helper is at work, try again".to_owned();
        }
        self.flush();
        match self.try_upgrade(exe) {
            Ok(never) => match never {},
            Err(error) => error.to_string(),
        }
    }

    fn try_upgrade(&self, exe: &str) -> std::io::Result<std::convert::Infallible> {
        let number = |fd: &Option<OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);
        let saved = Saved {
            listener: self.listener.as_raw_fd(),
            lock: self.lock.as_raw_fd(),
            daemon: number(&self.daemon),
            processes: self
                .processes
                .iter()
                .map(|((id, exec), p)| SavedProcess {
                    id: id.clone(),
                    exec: exec.clone(),
                    pid: p.pid,
                    started_at: p.started_at,
                    exit: p.exit,
                    stdin: number(&p.stdin),
                    stdout: number(&p.stdout),
                    stderr: number(&p.stderr),
                    pty: number(&p.pty),
                })
                .collect(),
            leases: self.leases.clone(),
        };
        let memory = rustix::fs::memfd_create(c"skep-supervisor-state", rustix::fs::MemfdFlags::empty())?;
        let mut file = std::fs::File::from(memory);
        serde_json::to_writer(&mut file, &saved)?;
        std::io::Seek::rewind(&mut file)?;
        let exec_root = self.directory.parent().unwrap_or(&self.directory);
        let all = || {
            [Some(self.listener.as_fd()), Some(self.lock.as_fd()), self.daemon.as_ref().map(AsFd::as_fd)]
                .into_iter()
                .flatten()
                .chain(self.processes.values().flat_map(Process::fds))
        };
        for fd in all() {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        let resume = file.as_raw_fd().to_string();
        let error =
            match c_strings(&[exe, "supervisor", "--exec-root", &exec_root.to_string_lossy(), "--resume", &resume]) {
                Ok(args) => match nix::unistd::execv(&args[0], &args) {
                    Ok(never) => return Ok(never),
                    Err(errno) => std::io::Error::from(errno),
                },
                Err(error) => error,
            };
        for fd in all() {
            let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
        }
        Err(error)
    }

    pub(super) fn resume(exec_root: &Path, fd: RawFd) -> std::io::Result<Self> {
        let saved: Saved = serde_json::from_reader(std::fs::File::from(sys::process::adopt_fd(fd)?))?;
        let adopt = |fd: RawFd| -> std::io::Result<OwnedFd> {
            let fd = sys::process::adopt_fd(fd)?;
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
            Ok(fd)
        };
        let maybe = |fd: Option<RawFd>| fd.map(adopt).transpose();
        let mut processes = BTreeMap::new();
        for p in saved.processes {
            let process = Process {
                pid: p.pid,
                started_at: p.started_at,
                exit: p.exit,
                stdin: maybe(p.stdin)?,
                stdout: maybe(p.stdout)?,
                stderr: maybe(p.stderr)?,
                pty: maybe(p.pty)?,
            };
            processes.insert((p.id, p.exec), process);
        }
        let _ = rustix::thread::set_name(c"skep-supervisor");
        let directory = crate::supervisor::directory(exec_root);
        let exits = crate::supervisor::exits_directory(exec_root);
        let (listener, lock, daemon) = (adopt(saved.listener)?, adopt(saved.lock)?, maybe(saved.daemon)?);
        let begun = Self::new(directory, exits, listener, block_signals()?, lock);
        Ok(Self { daemon, processes, leases: saved.leases, ..begun })
    }
}

fn c_strings(words: &[&str]) -> std::io::Result<Vec<std::ffi::CString>> {
    words.iter().map(|w| std::ffi::CString::new(*w).map_err(std::io::Error::from)).collect()
}
