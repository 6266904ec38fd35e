//! fork, signals, limits: calls that act on the whole process, for the single-threaded supervisor and what it forks.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Forks; `None` in the child.
///
/// Only for the supervisor, which has one thread: the child may then do everything the parent could. It must end with
/// [`exit_now`] or `execve`, so that no destructor of the parent runs twice.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: fork(2) demands that the child of a multi-threaded process calls only async-signal-safe functions; the
    // supervisor is single-threaded, so no lock can be held by another thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Ends the process without running destructors or exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no demands.
    unsafe { libc::_exit(code) }
}

/// Every signal at its default and none blocked: what `execve` passes on is not the supervisor's business.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; numbers that may not be changed (KILL, STOP, libc's own) only yield EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: setrlimit(2) reads one `rlimit` behind the pointer, alive over the call.
    match unsafe { libc::setrlimit(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over a descriptor that was passed by number over `execve`.
pub(crate) fn adopt_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) only reads the flags of a number, valid or not.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and the state file that named it is the only claim on it: the
    // program before the execve wrote it and is gone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to a child that has not been reaped, so that the number cannot mean another process.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) has no memory demands.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
