//! `skep init -- command…`: process 1 of a container with `init: true`, as Docker's tini: starts the command, passes signals
//! on to it, reaps everything, and ends as it ended.

use std::ffi::CString;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, execvp, setpgid};

use crate::sys::process;

/// A command that is not there, and one that cannot be run, as a shell says it.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// Must be called before any thread is started.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let words: Result<Vec<CString>, _> = args.skip_while(|word| word == "--").map(CString::new).collect();
    let Some(words) = words.ok().filter(|words| !words.is_empty()) else { return ExitCode::from(2) };
    let all = SigSet::all();
    if all.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    match process::fork() {
        Ok(None) => process::exit_now(i32::from(become_command(&words))),
        Ok(Some(child)) => ExitCode::from(watch(Pid::from_raw(child), &all)),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Comes back only if it failed.
fn become_command(words: &[CString]) -> u8 {
    // A group of its own, in the foreground of the terminal if there is one: Ctrl-C is for the command.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = nix::unistd::tcsetpgrp(std::io::stdin(), nix::unistd::getpid());
    process::reset_signals();
    match execvp(&words[0], words) {
        Ok(never) => match never {},
        Err(nix::errno::Errno::ENOENT) => NOT_FOUND,
        Err(_) => NOT_RUNNABLE,
    }
}

fn watch(child: Pid, signals: &SigSet) -> u8 {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    return code;
                }
            }
            Ok(signal) => {
                let _ = nix::sys::signal::kill(child, signal);
            }
            Err(_) => {}
        }
    }
}

/// The command's exit code, if it was among those that ended.
fn reap(child: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => continue,
        };
        if pid == child {
            code = u8::try_from(ended & 0xff).ok();
        }
    }
}
