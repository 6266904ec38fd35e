//! The one source of chance: everything a run draws follows from its seed.

use std::time::Duration;

use skep_control::{IdSource, SeededIds};

#[derive(Clone, Debug)]
pub(crate) struct Dice(SeededIds);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeededIds(seed))
    }

    /// Dice of their own for one part of the world, so that what one part draws does not move what another does.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.number())
    }

    pub(crate) fn number(&mut self) -> u64 {
        let [high, low] = split(self.0.next_id());
        high ^ low.rotate_left(32)
    }

    /// 0 to `limit` - 1.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = limit.max(1) as u64;
        (self.number() % limit) as usize
    }

    pub(crate) fn percent(&mut self, chance: u32) -> bool {
        self.number() % 100 < u64::from(chance)
    }

    pub(crate) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX).max(1);
        low + Duration::from_nanos(self.number() % span)
    }

    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        self.between(Duration::from_millis(low), Duration::from_millis(high))
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.below(from.len())) }
    }
}

fn split(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

impl IdSource for Dice {
    fn next_id(&mut self) -> u128 {
        self.0.next_id()
    }
}
