//! The clock by which a leader judges the silence of others.

use std::time::Duration;

use skep_model::Timestamp;

/// Between two looks at the clock no more than this counts: for the rest of it nobody could be heard here.
const STALL: Duration = Duration::from_millis(250);

/// A clock that never jumps, and that stands still while its process does.
#[derive(Clone, Debug, Default)]
pub struct LiveClock {
    now: Timestamp,
    seen: Duration,
}

impl LiveClock {
    /// `at`: since any fixed moment, on a clock that never jumps.
    pub fn now(&mut self, at: Duration) -> Timestamp {
        self.now = self.now.plus(at.saturating_sub(self.seen).min(STALL));
        self.seen = at;
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_while_its_process_does() {
        let mut clock = LiveClock::default();
        let (before, after) = (clock.now(Duration::from_millis(100)), clock.now(Duration::from_millis(300)));
        assert_eq!(after.since(before), Duration::from_millis(200));
        assert_eq!(clock.now(Duration::from_secs(9)).since(after), STALL);
    }
}
