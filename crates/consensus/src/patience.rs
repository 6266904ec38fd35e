//! How much longer than `Timing` says a follower waits for its leader, on a machine that is late itself.
//!
//! A machine that does not get to run for half a second hears nothing for half a second, and so may its leader, who is
//! often in the same trouble (a host that swaps, a virtual machine that was not scheduled). A short task is timed: as late
//! as it was, lately, so much more silence is needed before this manager stands for election. On a machine in order this
//! adds nothing, and it adds at most [`ELECTION_STRETCH_MAX`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{ELECTION_STRETCH_MAX, Timing};
use crate::types::Raft;

/// How long a lateness is held against the machine.
const MEMORY: Duration = Duration::from_secs(10);

/// When a leader was last heard.
#[derive(Clone, Debug)]
pub(crate) struct Heard(Arc<Mutex<Instant>>);

impl Heard {
    /// At the start, as if just now.
    pub(crate) fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn again(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// The worst lateness of late.
#[derive(Debug)]
struct Lateness {
    worst: Duration,
    at: Instant,
}

impl Lateness {
    /// `late`: how much later than asked for this machine ran something at `now`. Less than `tolerated` is what the timings
    /// allow for already.
    fn observe(&mut self, late: Duration, tolerated: Duration, now: Instant) {
        if late > tolerated && late >= self.stretch(now) {
            *self = Self { worst: late, at: now };
        }
    }

    fn stretch(&self, now: Instant) -> Duration {
        if now.duration_since(self.at) > MEMORY { Duration::ZERO } else { self.worst.min(ELECTION_STRETCH_MAX) }
    }
}

/// Runs until cancelled.
pub(crate) async fn watch(timing: Timing, raft: Raft, heard: Heard, cancel: CancellationToken) {
    let period = timing.heartbeat / 2;
    let mut lateness = Lateness { worst: Duration::ZERO, at: Instant::now() };
    loop {
        let due = Instant::now() + period;
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        let now = Instant::now();
        lateness.observe(now.duration_since(due), timing.heartbeat, now);
        let stretch = lateness.stretch(now);
        raft.runtime_config().elect(stretch.is_zero() || heard.silence() >= timing.election_max + stretch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lateness_stretches_within_its_bound_and_is_forgotten() {
        let (ms, tolerated) = (Duration::from_millis, Duration::from_millis(100));
        let start = Instant::now();
        let mut lateness = Lateness { worst: Duration::ZERO, at: start };
        lateness.observe(ms(90), tolerated, start);
        assert_eq!(lateness.stretch(start), Duration::ZERO, "within what the timings allow for");
        lateness.observe(ms(400), tolerated, start);
        lateness.observe(ms(150), tolerated, start + ms(50));
        assert_eq!(lateness.stretch(start + ms(100)), ms(400), "the worst counts");
        assert_eq!(lateness.stretch(start + MEMORY + ms(1)), Duration::ZERO, "and passes");
        lateness.observe(ms(60_000), tolerated, start);
        assert_eq!(lateness.stretch(start), ELECTION_STRETCH_MAX);
    }
}
