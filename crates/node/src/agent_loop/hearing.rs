//! How long a silent leader is waited for.
//!
//! On a link in order less than an election takes, so that the worker is looking when the next one leads. On one that loses
//! packets the leader is silent now and then although it is there: twice the longest silence it has broken lately.

use std::time::Duration;

use tokio::time::Instant;

const SILENCE: Duration = Duration::from_millis(700);
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a silence is remembered: losses come in no order.
const MEMORY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Hearing {
    heard: Instant,
    worst: Duration,
    worst_at: Instant,
    /// Of which manager.
    manager: String,
}

impl Hearing {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, worst: Duration::ZERO, worst_at: now, manager: String::new() }
    }

    /// A session begins. If it is with the manager that was given up as silent, it was not: the link was.
    pub(super) fn begin(&mut self, manager: &str, now: Instant) {
        if self.manager == manager {
            self.heard(now);
        }
        (self.heard, self.manager) = (now, manager.to_owned());
    }

    pub(super) fn heard(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.heard);
        if silence >= self.lately(now) {
            (self.worst, self.worst_at) = (silence, now);
        }
        self.heard = now;
    }

    /// This process slept for so long and heard nobody: that is not the link's silence.
    pub(super) fn slept(&mut self, span: Duration) {
        self.heard += span;
    }

    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) > (self.lately(now) * 2).clamp(SILENCE, SILENCE_MAX)
    }

    fn lately(&self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.worst_at) > MEMORY { Duration::ZERO } else { self.worst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_that_was_broken_makes_patient_for_a_while() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut hearing = Hearing::new(start);
        hearing.begin("a", start);
        assert!(!hearing.is_silent(at(700)) && hearing.is_silent(at(701)));
        // It was there after all.
        hearing.begin("a", at(701));
        assert!(!hearing.is_silent(at(2_103)) && hearing.is_silent(at(2_104)));
        // Another leads: the silence was a dead one's.
        hearing.begin("b", at(10_000));
        assert!(hearing.is_silent(at(11_403)));
        // Never longer than three seconds.
        hearing.heard(at(30_000));
        assert!(!hearing.is_silent(at(33_000)) && hearing.is_silent(at(33_001)));
        // What this process slept through was nobody's silence.
        hearing.slept(Duration::from_secs(1));
        assert!(!hearing.is_silent(at(34_000)));
        for ms in (33_100..=65_000).step_by(100) {
            hearing.heard(at(ms));
        }
        assert!(!hearing.is_silent(at(65_700)) && hearing.is_silent(at(65_701)), "forgotten");
    }
}
