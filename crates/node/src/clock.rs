//! The one place of this crate that reads the clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_model::Timestamp;

/// More than a clock that is slewed gains between two looks, less than matters to anything that is timed here.
const JUMP: Duration = Duration::from_millis(200);

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// The same clock, and since when it has not been set.
pub(crate) struct SteadyClock {
    since: Timestamp,
    /// At the last look: by the clock, and by one that cannot be set.
    last: (Timestamp, Instant),
}

impl SteadyClock {
    pub(crate) fn new() -> Self {
        let at = now();
        Self { since: at, last: (at, Instant::now()) }
    }

    /// What it shows, and since when that can be compared.
    pub(crate) fn read(&mut self) -> (Timestamp, Timestamp) {
        self.look(now(), Instant::now())
    }

    fn look(&mut self, at: Timestamp, instant: Instant) -> (Timestamp, Timestamp) {
        let due = self.last.0.plus(instant.saturating_duration_since(self.last.1));
        if at.since(due).max(due.since(at)) > JUMP {
            self.since = at;
        }
        self.last = (at, instant);
        (at, self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_steady_since_it_was_last_set() {
        let mut clock = SteadyClock::new();
        let (began, instant) = clock.last;
        let second = Duration::from_secs(1);
        assert_eq!(clock.look(began.plus(second), instant + second), (began.plus(second), began));
        for set in [began.plus(second * 9), began] {
            assert_eq!(clock.look(set, instant + second * 2), (set, set));
            clock.look(began.plus(second * 2), instant + second * 2);
        }
    }
}
