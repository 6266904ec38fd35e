//! Whether a history of one register is linearizable (Wing and Gong's search, with the states it has seen).

use std::collections::BTreeSet;

/// One operation of one client. Times are any clock all clients share.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) called: u128,
    /// `None`: nobody knows whether it took effect, or when. Reads that failed are left out.
    pub(crate) returned: Option<u128>,
    pub(crate) what: Access,
}

#[derive(Clone, Debug)]
pub(crate) enum Access {
    Write(u64),
    Read(u64),
}

/// Whether some order of the operations, each at one moment between call and return, explains what was read from a
/// register that starts with 0.
pub(crate) fn is_linearizable(history: &[Operation]) -> bool {
    assert!(history.len() <= 128, "{} operations are too many", history.len());
    let must: u128 = bits(history.iter().enumerate().filter(|(_, op)| op.returned.is_some()).map(|(at, _)| at));
    let (mut seen, mut open) = (BTreeSet::new(), vec![(0u128, 0u64)]);
    while let Some((done, value)) = open.pop() {
        if done & must == must {
            return true;
        }
        if !seen.insert((done, value)) {
            continue;
        }
        let left = || history.iter().enumerate().filter(|(at, _)| done >> at & 1 == 0);
        // What was called after another had returned comes after it.
        let first_return = left().filter_map(|(_, op)| op.returned).min().unwrap_or(u128::MAX);
        for (at, op) in left().filter(|(_, op)| op.called <= first_return) {
            match op.what {
                Access::Write(new) => open.push((done | 1 << at, new)),
                Access::Read(read) if read == value => open.push((done | 1 << at, value)),
                Access::Read(_) => {}
            }
        }
    }
    false
}

fn bits(places: impl Iterator<Item = usize>) -> u128 {
    places.fold(0, |bits, at| bits | 1 << at)
}
