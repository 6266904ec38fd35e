//! The process that is the parent of all containers of this host, and the daemon's connection to it.
//!
//! `skep supervisor` is single-threaded: libcontainer clones without telling libc, which deadlocks a threaded program
//! (youki 3027). It knows processes, pipes and exit codes, and nothing of images, networks or policies. It outlives the
//! daemon: stdio pipes and exit codes wait in it until a daemon takes them.
//!
//! Read first: [`protocol`], then `server` (the loop), `helper` (one libcontainer call), `executor` (the last step before
//! the command runs), `client` (the daemon's side).

pub mod protocol;

pub(crate) mod client;
pub(crate) mod executor;
pub(crate) mod helper;
pub(crate) mod packet;
mod server;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Entry of `skep supervisor --exec-root X`: goes to the background, and comes back when it listens there. With
/// `--open-files N`, containers may open N files unless they say otherwise, however many the daemon may.
///
/// Must be called before any thread is started.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let mut exec_root = None;
    let mut resume = None;
    let mut args = args;
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--exec-root" => exec_root = args.next().map(PathBuf::from),
            "--open-files" => {
                if let Some(soft) = args.next().and_then(|n| n.parse().ok())
                    && let Err(error) = limit_open_files(soft)
                {
                    tracing::warn!(%error, "containers may open as many files as the daemon");
                }
            }
            "--resume" => resume = args.next().and_then(|n| n.parse().ok()),
            _ => {
                tracing::error!(flag, "unknown flag of the supervisor");
                return ExitCode::from(2);
            }
        }
    }
    let Some(exec_root) = exec_root else {
        tracing::error!("the supervisor needs --exec-root");
        return ExitCode::from(2);
    };
    match server::run(&exec_root, resume) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the supervisor failed");
            ExitCode::FAILURE
        }
    }
}

fn limit_open_files(soft: u64) -> nix::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)
}

/// Everything of the supervisor's is under here.
pub(crate) fn directory(exec_root: &Path) -> PathBuf {
    exec_root.join("supervisor")
}

pub(crate) fn socket_path(exec_root: &Path) -> PathBuf {
    directory(exec_root).join("sock")
}

/// libcontainer's state directories, one a container.
pub(crate) fn state_root(exec_root: &Path) -> PathBuf {
    directory(exec_root).join("state")
}

/// Exit codes not yet taken, one file a container.
pub(crate) fn exits_directory(exec_root: &Path) -> PathBuf {
    directory(exec_root).join("exits")
}
