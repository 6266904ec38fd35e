//! What a decision is handed besides the View, and what it gives back.

use skep_model::Timestamp;
use skep_store::Change;

/// Where new ids come from: dice in the product, a counter in tests.
pub trait IdSource {
    fn next_id(&mut self) -> u128;
}

impl<F: FnMut() -> u128> IdSource for F {
    fn next_id(&mut self) -> u128 {
        self()
    }
}

/// A fixed sequence of well-spread ids, for tests and simulation (splitmix64, twice).
#[derive(Clone, Debug)]
pub struct SeededIds(pub u64);

impl SeededIds {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl IdSource for SeededIds {
    fn next_id(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }
}

pub struct Ctx<'a> {
    /// Read after the view was taken: what this leader wrote is never later.
    pub now: Timestamp,
    /// Since when the clock that shows `now` has been the leader's, without a jump: of moments written before that, or after
    /// `now`, nobody knows how long ago they were.
    pub steady_since: Timestamp,
    pub ids: &'a mut dyn IdSource,
}

/// What to propose now, and when to look again even if nothing happens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub changes: Vec<Change>,
    pub wake_at: Option<Timestamp>,
}
