//! The worker's line to the leader: which manager is asked next for a session, and when a leader that is silent is given up.
//!
//! Times are durations since any fixed moment, on a clock that never jumps.

use std::collections::BTreeMap;
use std::time::Duration;

/// How often a worker shows itself, and is answered.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A manager that has not answered by then is given up for now; others are asked meanwhile.
pub const OPEN_DEADLINE: Duration = Duration::from_millis(1_500);
/// The next manager is asked although the one before has not answered yet.
const STAGGER: Duration = Duration::from_millis(150);
/// A leader silent for so long is given up: less than an election takes, so that the worker is looking when the next one
/// leads. On a link that loses packets it is silent now and then although it is there: twice the longest silence it has
/// broken lately is waited for, up to [`SILENCE_MAX`].
const SILENCE: Duration = Duration::from_millis(700);
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a silence is remembered: losses come in no order.
const MEMORY: Duration = Duration::from_secs(30);
/// A manager is asked again after this while an election may be running, and ever less often after [`EAGER_FOR`].
const ASK_AGAIN: Duration = Duration::from_millis(100);
const EAGER_FOR: Duration = Duration::from_secs(3);
const ASK_AGAIN_LAST: Duration = Duration::from_secs(1);

/// A number a caller draws.
pub type Draw<'a> = &'a mut dyn FnMut() -> u32;

/// A manager being asked for a session.
#[derive(Clone, Debug)]
struct Asked {
    /// When to ask, again; `None` while an answer is awaited.
    due: Option<Duration>,
    failed: bool,
}

/// Why a manager opened no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unopened<M> {
    /// It answered that it does not lead, and who does.
    Elsewhere(Option<M>),
    Failed,
}

/// Asks the known managers until one opens a session, and does not wait for any that is slow: it may be dead, or on the other
/// side of a broken link. The one that had the last session comes first, or last if it was lost.
#[derive(Clone, Debug)]
pub struct Search<M> {
    began: Duration,
    last: Option<(M, bool)>,
    asked: BTreeMap<M, Asked>,
}

impl<M: Clone + Ord> Search<M> {
    /// `last`: who had the session before, and whether it was lost.
    pub fn new(last: Option<(M, bool)>, now: Duration) -> Self {
        Self { began: now, last, asked: BTreeMap::new() }
    }

    fn rank(&self, manager: &M) -> u8 {
        self.last.as_ref().filter(|(known, _)| known == manager).map_or(1, |(_, lost)| 2 * u8::from(*lost))
    }

    /// Takes in the managers that are known by now, those that are alike in an order that is drawn: not all nodes the same
    /// one first.
    pub fn know(&mut self, managers: impl IntoIterator<Item = M>, now: Duration, draw: Draw<'_>) {
        let mut fresh: Vec<M> = managers.into_iter().filter(|m| !self.asked.contains_key(m)).collect();
        fresh.sort_by_cached_key(|manager| (self.rank(manager), draw()));
        for (manager, turn) in fresh.into_iter().zip(0u32..) {
            // One that drops every session at once must not be asked without end.
            let pause = if self.rank(&manager) == 2 { ASK_AGAIN / 2 } else { Duration::ZERO };
            self.asked.insert(manager, Asked { due: Some(now + STAGGER * turn + pause), failed: false });
        }
    }

    /// Whom to ask now.
    pub fn due(&mut self, now: Duration) -> Vec<M> {
        let due = self.asked.iter_mut().filter(|(_, asked)| asked.due.is_some_and(|due| due <= now));
        due.map(|(manager, asked)| {
            asked.due = None;
            manager.clone()
        })
        .collect()
    }

    /// When to look again, if nobody answers before.
    pub fn next(&self, now: Duration) -> Duration {
        self.asked.values().filter_map(|asked| asked.due).min().unwrap_or(now + ASK_AGAIN_LAST)
    }

    pub fn answered(&mut self, manager: M, answer: Unopened<M>, now: Duration, draw: Draw<'_>) {
        let pause = if now.saturating_sub(self.began) < EAGER_FOR { ASK_AGAIN } else { ASK_AGAIN_LAST };
        let pause = pause.mul_f64(0.5 + f64::from(draw()) / f64::from(u32::MAX) / 2.0);
        if let Some(asked) = self.asked.get_mut(&manager) {
            asked.due = Some(now + pause);
            asked.failed |= answer == Unopened::Failed;
        }
        // A leader that could not be reached is not asked more often on a follower's word: it has not noticed yet.
        if let Unopened::Elsewhere(Some(leader)) = answer {
            let asked = self.asked.entry(leader).or_insert(Asked { due: Some(now), failed: false });
            if asked.due.is_some() && !asked.failed {
                asked.due = Some(now);
            }
        }
    }
}

/// How long a silent leader is waited for.
#[derive(Clone, Debug)]
pub struct Hearing<M> {
    heard: Duration,
    worst: Duration,
    worst_at: Duration,
    beat: Duration,
    /// Of which manager.
    manager: Option<M>,
}

impl<M: PartialEq> Hearing<M> {
    pub fn new(now: Duration) -> Self {
        Self { heard: now, worst: Duration::ZERO, worst_at: now, beat: now, manager: None }
    }

    /// A session begins. If it is with the manager that was given up as silent, it was not: the link was.
    pub fn begin(&mut self, manager: M, now: Duration) {
        if self.manager.as_ref() == Some(&manager) {
            self.heard(now);
        }
        (self.heard, self.beat, self.manager) = (now, now, Some(manager));
    }

    /// A message, of any kind.
    pub fn heard(&mut self, now: Duration) {
        let silence = now.saturating_sub(self.heard);
        if silence >= self.lately(now) {
            (self.worst, self.worst_at) = (silence, now);
        }
        self.heard = now;
    }

    /// At every heartbeat, one of which is due every `period`: whether the leader fell silent.
    pub fn is_silent(&mut self, period: Duration, now: Duration) -> bool {
        // What this process slept through was nobody's silence.
        self.heard += now.saturating_sub(self.beat).saturating_sub(period * 2);
        self.beat = now;
        now.saturating_sub(self.heard) > (self.lately(now) * 2).clamp(SILENCE, SILENCE_MAX)
    }

    fn lately(&self, now: Duration) -> Duration {
        if now.saturating_sub(self.worst_at) > MEMORY { Duration::ZERO } else { self.worst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_manager_that_was_lost_is_asked_last_and_nobody_is_waited_for() {
        let mut search = Search::new(Some(("a", true)), at(0));
        search.know(["a", "b", "c"], at(0), &mut || 7);
        assert_eq!(search.due(at(0)), ["b"]);
        assert_eq!(search.due(search.next(at(0))), ["c"], "b has not answered yet");
        assert_eq!(search.next(at(150)), at(350));
        assert_eq!(search.due(at(350)), ["a"]);
    }

    #[test]
    fn a_leader_that_a_follower_names_is_asked_at_once_unless_it_failed() {
        let mut search = Search::new(None, at(0));
        search.know(["a", "b"], at(0), &mut || 7);
        assert_eq!(search.due(at(0)), ["a"]);
        search.answered("a", Unopened::Elsewhere(Some("b")), at(10), &mut || 0);
        assert_eq!(search.due(at(10)), ["b"]);
        search.answered("b", Unopened::Failed, at(20), &mut || 0);
        assert_eq!(search.due(at(60)), ["a"]);
        search.answered("a", Unopened::Elsewhere(Some("b")), at(61), &mut || 0);
        assert_eq!(search.next(at(61)), at(70), "in its turn");
    }

    /// Asked at every heartbeat, when the silence is too long.
    fn lost_after(hearing: &Hearing<&str>, from: u64) -> Option<u64> {
        let mut hearing = hearing.clone();
        (from..from + 6_000).step_by(100).find(|ms| hearing.is_silent(HEARTBEAT, at(*ms))).map(|ms| ms - from)
    }

    #[test]
    fn a_silence_that_was_broken_makes_patient_for_a_while() {
        let mut hearing = Hearing::new(at(0));
        hearing.begin("a", at(0));
        assert_eq!(lost_after(&hearing, 0), Some(800));
        // It was there after all.
        hearing.begin("a", at(800));
        assert_eq!(lost_after(&hearing, 800), Some(1_700));
        // Another leads: the silence was a dead one's.
        hearing.begin("b", at(10_000));
        assert_eq!(lost_after(&hearing, 10_000), Some(1_700));
        // Never longer than three seconds.
        hearing.heard(at(30_000));
        hearing.beat = at(30_000);
        assert_eq!(lost_after(&hearing, 30_000), Some(3_100));
        for ms in (30_100..=65_000).step_by(100) {
            hearing.heard(at(ms));
            assert!(!hearing.is_silent(HEARTBEAT, at(ms)));
        }
        assert_eq!(lost_after(&hearing, 65_000), Some(800), "forgotten");
        // What this process slept through was nobody's silence.
        assert!(!hearing.is_silent(HEARTBEAT, at(95_000)));
    }
}
