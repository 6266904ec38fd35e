//! What a leader has to look at, and when in any case: between its log and [`tick()`](crate::tick()).

use std::time::Duration;

use skep_model::Timestamp;
use skep_store::Event;

use crate::ctx::Decision;
use crate::dirty::Dirty;

/// Looked at even if nothing happened and nothing is due, against anything forgotten.
const PERIOD: Duration = Duration::from_secs(5);
/// After a refusal the view is newer already; a decision refused again and again is looked at less often.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
const REFUSED_MAX: u32 = 50;

#[derive(Clone, Debug)]
pub struct Agenda {
    dirty: Dirty,
    /// When `tick` wanted to look again in any case.
    wake_at: Option<Timestamp>,
    /// Whether the last look was at everything.
    all: bool,
    /// How many decisions in a row were refused.
    refused: u32,
}

impl Default for Agenda {
    fn default() -> Self {
        Self::new()
    }
}

impl Agenda {
    /// A new leader looks at everything.
    pub fn new() -> Self {
        Self { dirty: Dirty::all(), wake_at: None, all: true, refused: 0 }
    }

    pub fn mark(&mut self, events: &[Event]) {
        events.iter().for_each(|event| self.dirty.mark(event));
    }

    pub fn mark_all(&mut self) {
        self.dirty.mark_all();
    }

    /// What to look at now; `None` if nothing.
    pub fn take(&mut self, now: Timestamp) -> Option<Dirty> {
        if self.wake_at.is_some_and(|at| at <= now) {
            self.dirty.mark_all();
        }
        if self.dirty.is_empty() {
            return None;
        }
        self.all = self.dirty.everything;
        Some(self.dirty.take())
    }

    /// What came of it: who looked at a part knows nothing of when the rest is due.
    pub fn decided(&mut self, decision: &Decision) {
        self.wake_at = match (self.wake_at, decision.wake_at) {
            (Some(old), Some(new)) if !self.all => Some(old.min(new)),
            (old, None) if !self.all => old,
            (_, new) => new,
        };
    }

    pub fn accepted(&mut self) {
        self.refused = 0;
    }

    /// The log refused a decision, or may have: all is decided anew, after this long.
    pub fn refused(&mut self) -> Duration {
        self.dirty.mark_all();
        self.refused = (self.refused + 1).min(REFUSED_MAX);
        REFUSED_PAUSE * (self.refused - 1)
    }

    /// How long nothing is due; after it, [`Agenda::mark_all`].
    pub fn rest(&self, now: Timestamp) -> Duration {
        self.wake_at.map_or(PERIOD, |at| at.since(now).min(PERIOD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(wake_at: Option<i64>) -> Decision {
        Decision { wake_at: wake_at.map(Timestamp::from_secs), ..Decision::default() }
    }

    #[test]
    fn a_look_at_a_part_forgets_no_alarm_of_the_rest() {
        let mut agenda = Agenda::new();
        assert!(agenda.take(Timestamp::ZERO).is_some());
        agenda.decided(&wants(Some(3)));
        assert_eq!(agenda.take(Timestamp::ZERO), None);
        agenda.all = false;
        agenda.decided(&wants(None));
        assert_eq!(agenda.rest(Timestamp::from_secs(1)), Duration::from_secs(2));
        agenda.decided(&wants(Some(4)));
        assert_eq!(agenda.rest(Timestamp::from_secs(1)), Duration::from_secs(2));
        assert_eq!(agenda.take(Timestamp::from_secs(3)), Some(Dirty::all()));
        agenda.decided(&wants(None));
        assert_eq!(agenda.rest(Timestamp::from_secs(3)), PERIOD);
    }

    #[test]
    fn what_is_refused_again_and_again_is_decided_less_often() {
        let mut agenda = Agenda::new();
        agenda.take(Timestamp::ZERO);
        assert_eq!(agenda.refused(), Duration::ZERO);
        assert!(agenda.take(Timestamp::ZERO).is_some());
        assert_eq!(agenda.refused(), REFUSED_PAUSE);
        assert_eq!((0..100).map(|_| agenda.refused()).max(), Some(Duration::from_millis(980)));
        agenda.accepted();
        assert_eq!(agenda.refused(), Duration::ZERO);
    }
}
