//! Containers that may run only as long as somebody says so: the daemon extends their leases, and where no daemon does, for
//! whatever reason, they are killed here.

use std::time::Instant;

use super::Server;
use crate::supervisor::protocol::Launch;
use crate::sys;

fn now_ms() -> u64 {
    u64::try_from(sys::clock::since_boot().as_millis()).unwrap_or(u64::MAX)
}

impl Server {
    /// Leases only grow: an answer that was overtaken shortens none.
    pub(super) fn lease(&mut self, id: String, until_ms: u64) {
        let lease = self.leases.entry(id).or_default();
        *lease = (*lease).max(until_ms);
    }

    pub(super) fn check_lease(&self, launch: &Launch) -> std::io::Result<()> {
        match self.leases.get(&launch.id) {
            Some(until) if *until <= now_ms() => {
                Err(std::io::Error::other("this host has not been in touch with a manager for too long"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn leased(&self) -> impl Iterator<Item = (u64, i32)> {
        self.leases.iter().filter_map(|(id, until)| {
            let process = self.processes.get(&(id.clone(), String::new()))?;
            process.exit.is_none().then_some((*until, process.pid))
        })
    }

    pub(super) fn end_leases(&self) {
        if self.leases.is_empty() {
            return;
        }
        let now = now_ms();
        for (_, pid) in self.leased().filter(|(until, _)| *until <= now) {
            // Not reaped, so the number is still this process. It is the first of its namespace: all others go with it.
            let _ = sys::process::kill(pid, libc::SIGKILL);
        }
    }

    /// How long to wait for anything: until the next lease ends, or the next look at whether to go on at all.
    pub(super) fn patience(&self) -> Option<rustix::event::Timespec> {
        const IDLE_LOOK_MS: u64 = 1000;
        const AGAIN_MS: u64 = 20;
        // The time that poll takes stands still while the host sleeps, that of a lease does not.
        const LEASE_LOOK_MS: u64 = 250;
        let idle = self.idle_since.map(|_| IDLE_LOOK_MS);
        let now = if self.leases.is_empty() { 0 } else { now_ms() };
        // One that was killed is looked at again until it is reaped.
        let lease = self.leased().map(|(until, _)| until.saturating_sub(now).clamp(AGAIN_MS, LEASE_LOOK_MS)).min();
        let greeting = self.greeting.map(|(_, until)| until.saturating_duration_since(Instant::now()));
        let greeting = greeting.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(AGAIN_MS));
        let wait = idle.into_iter().chain(lease).chain(greeting).min()?;
        let (seconds, millis) = (wait / 1000, wait % 1000);
        Some(rustix::event::Timespec {
            tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(millis * 1_000_000).unwrap_or(0),
        })
    }
}
