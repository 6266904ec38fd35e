//! The lab's unsafe calls, each thin: fork, and entering namespaces.

use std::fs::File;
use std::io;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{ForkResult, Pid, fork};

/// Forks this process; `child` runs in the child, which ends with it.
///
/// Must be called while the process has one thread only (the lab's host process calls it first thing in `main`).
pub(crate) fn fork_into(child: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: `fork` demands that a multi-threaded child calls only async-signal-safe functions. The callers are
    // single-threaded at this point: no runtime has been started in a `lab-host` or `lab-exec` process.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            child();
            std::process::exit(1)
        }
    }
}

/// Enters the namespaces of another process, named as in `/proc/<pid>/ns`.
pub(crate) fn enter(pid: i32, kinds: &[(&str, CloneFlags)]) -> io::Result<()> {
    // All are opened before any is entered: after entering the mount namespace `/proc` shows other processes.
    let files: Vec<(File, CloneFlags)> = kinds
        .iter()
        .map(|(name, flag)| Ok((File::open(format!("/proc/{pid}/ns/{name}"))?, *flag)))
        .collect::<io::Result<_>>()?;
    for (file, flag) in &files {
        setns(file, *flag)?;
    }
    Ok(())
}
