//! How much longer than `Timing` says a follower waits for its leader, where it has reason to.
//!
//! A machine that does not get to run for half a second hears nothing for half a second, and so may its leader, who is
//! often in the same trouble (a host that swaps, a virtual machine that was not scheduled). A short task is timed: as late
//! as it was, lately, so much more silence is needed before this manager stands for election. And a link that loses packets
//! is silent now and then although the leader lives: twice the longest silence that this leader has broken lately is
//! waited for. On a machine and a link in order this adds nothing, and it adds at most [`ELECTION_STRETCH_MAX`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{ELECTION_STRETCH_MAX, Timing};
use crate::types::Raft;

/// How long a lateness is held against the machine.
const MACHINE_MEMORY: Duration = Duration::from_secs(10);
/// How long a silence is held against the link: losses come in no order.
const LINK_MEMORY: Duration = Duration::from_secs(30);

/// The longest of some spans of late.
#[derive(Debug)]
struct Worst {
    span: Duration,
    at: Instant,
    memory: Duration,
}

impl Worst {
    fn new(memory: Duration) -> Self {
        Self { span: Duration::ZERO, at: Instant::now(), memory }
    }

    fn observe(&mut self, span: Duration, now: Instant) {
        if span >= self.lately(now) {
            (self.span, self.at) = (span, now);
        }
    }

    fn lately(&self, now: Instant) -> Duration {
        if now.duration_since(self.at) > self.memory { Duration::ZERO } else { self.span }
    }
}

/// When a leader was last heard, and how it was heard before.
#[derive(Clone, Debug)]
pub(crate) struct Heard(Arc<Mutex<Hearing>>);

#[derive(Debug)]
struct Hearing {
    last: Instant,
    term: u64,
    silences: Worst,
}

impl Heard {
    /// At the start, as if just now.
    pub(crate) fn now() -> Self {
        Self(Arc::new(Mutex::new(Hearing { last: Instant::now(), term: 0, silences: Worst::new(LINK_MEMORY) })))
    }

    /// From the leader of this term. Silence between two leaders is nobody's link.
    pub(crate) fn again(&self, term: u64) {
        let (mut hearing, now) = (self.hearing(), Instant::now());
        if term == hearing.term {
            let silence = now.duration_since(hearing.last);
            hearing.silences.observe(silence, now);
        }
        (hearing.term, hearing.last) = (term, now);
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it has been silent, and for how long it was before it spoke again.
    fn silence(&self, now: Instant) -> (Duration, Duration) {
        let hearing = self.hearing();
        (now.duration_since(hearing.last), hearing.silences.lately(now))
    }
}

/// How much silence is needed, if more than openraft waits for on its own.
fn patience(timing: &Timing, late: Duration, broken: Duration) -> Option<Duration> {
    // Less than a heartbeat is what the timings allow for already.
    let late = if late > timing.heartbeat { late } else { Duration::ZERO };
    let stretch = late.max((broken * 2).saturating_sub(timing.election_max)).min(ELECTION_STRETCH_MAX);
    (!stretch.is_zero()).then(|| timing.election_max + stretch)
}

/// Runs until cancelled.
pub(crate) async fn watch(timing: Timing, raft: Raft, heard: Heard, cancel: CancellationToken) {
    let period = timing.heartbeat / 2;
    let mut lateness = Worst::new(MACHINE_MEMORY);
    loop {
        let due = Instant::now() + period;
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        let now = Instant::now();
        lateness.observe(now.duration_since(due), now);
        let (silence, broken) = heard.silence(now);
        let needed = patience(&timing, lateness.lately(now), broken);
        raft.runtime_config().elect(needed.is_none_or(|needed| silence >= needed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn the_worst_of_late_counts_and_passes() {
        let start = Instant::now();
        let mut worst = Worst::new(MACHINE_MEMORY);
        worst.observe(ms(400), start);
        worst.observe(ms(150), start + ms(50));
        assert_eq!(worst.lately(start + ms(100)), ms(400));
        assert_eq!(worst.lately(start + MACHINE_MEMORY + ms(1)), Duration::ZERO);
    }

    #[test]
    fn patience_is_stretched_by_a_late_machine_and_a_link_that_was_silent_and_within_its_bound() {
        let timing = Timing::default();
        assert_eq!(patience(&timing, ms(90), ms(200)), None, "what the timings allow for");
        assert_eq!(patience(&timing, ms(400), ms(100)), Some(ms(1_300)));
        assert_eq!(patience(&timing, ms(0), ms(700)), Some(ms(1_400)));
        assert_eq!(patience(&timing, ms(60_000), ms(60_000)), Some(timing.election_max + ELECTION_STRETCH_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_silence_that_the_same_leader_broke_is_held_against_the_link() {
        let heard = Heard::now();
        heard.again(1);
        tokio::time::advance(ms(800)).await;
        heard.again(2);
        assert_eq!(heard.silence(Instant::now()).1, Duration::ZERO, "the leader of term 1 was dead");
        tokio::time::advance(ms(500)).await;
        heard.again(2);
        tokio::time::advance(ms(100)).await;
        heard.again(2);
        assert_eq!(heard.silence(Instant::now()).1, ms(500));
        tokio::time::advance(LINK_MEMORY + ms(1)).await;
        assert_eq!(heard.silence(Instant::now()).1, Duration::ZERO);
    }
}
