//! Which proposals took effect lately, so that one sent twice is applied once.
//!
//! The memory is bounded and part of the state: every manager forgets the same proposal at the same index. What is older
//! than the memory is refused by [`Request::since`], never applied on a guess.

use imbl::OrdMap;

use crate::change::Request;
use crate::refused::Refused;

/// Proposals remembered: many seconds of writes, and a write is not repeated for longer than a few.
const REMEMBERED: usize = 4096;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Requests {
    by_id: OrdMap<u128, u64>,
    by_index: OrdMap<u64, u128>,
    /// The highest index of a proposal that was forgotten.
    forgotten: u64,
}

impl Requests {
    /// Whether the proposal may take effect now.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Refused> {
        match self.by_id.get(&request.id) {
            Some(index) => Err(Refused::Repeated { index: *index }),
            None if request.since < self.forgotten => Err(Refused::Forgotten),
            None => Ok(()),
        }
    }

    pub(crate) fn remember(&mut self, request: &Request, index: u64) {
        self.by_id.insert(request.id, index);
        self.by_index.insert(index, request.id);
        while self.by_index.len() > REMEMBERED {
            let Some((oldest, id)) = self.by_index.get_min().copied() else { return };
            self.by_index.remove(&oldest);
            self.by_id.remove(&id);
            self.forgotten = oldest;
        }
    }

    /// What a snapshot must hold: the proposals by index, and up to where they were forgotten.
    pub(crate) fn contents(&self) -> (u64, Vec<(u64, u128)>) {
        (self.forgotten, self.by_index.iter().map(|(index, id)| (*index, *id)).collect())
    }

    pub(crate) fn from_contents(forgotten: u64, remembered: Vec<(u64, u128)>) -> Self {
        Self {
            by_id: remembered.iter().map(|(index, id)| (*id, *index)).collect(),
            by_index: remembered.into_iter().collect(),
            forgotten,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_refused_rather_than_applied_twice() {
        let mut requests = Requests::default();
        let first = Request { id: 1, since: 0 };
        requests.remember(&first, 1);
        assert_eq!(requests.check(&first), Err(Refused::Repeated { index: 1 }));
        for index in 2..=REMEMBERED as u64 + 1 {
            requests.remember(&Request { id: u128::from(index), since: index }, index);
        }
        assert_eq!(requests.by_id.len(), REMEMBERED);
        assert_eq!(requests.check(&first), Err(Refused::Forgotten));
        // A newcomer that saw the state lately is fine.
        assert_eq!(requests.check(&Request { id: 0, since: 1 }), Ok(()));
        let (forgotten, remembered) = requests.contents();
        assert_eq!(Requests::from_contents(forgotten, remembered), requests);
    }
}
