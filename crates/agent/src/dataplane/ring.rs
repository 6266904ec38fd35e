//! In which order the backends of an address take connections.
//!
//! Round robin: everyone once, or as often as its weight says, evenly spread; begun at a place of the host's own, so that
//! hosts do not all begin with the same one. By client: a fixed number of slots, the same on every host, of which each goes
//! to the backend that scores highest for it (rendezvous hashing), so that one backend more or less moves no other
//! backend's clients.

use skep_model::plan::Ring;

/// One that takes connections.
pub(super) struct Candidate<'a, T> {
    pub(super) backend: T,
    /// At least 1.
    pub(super) weight: u8,
    /// What makes its scores its own.
    pub(super) key: &'a str,
}

/// Enough that with ten backends shares differ by a seventh, few enough that the kernel takes them at once.
const SLOTS: u64 = 512;

/// `place` chooses where the round begins; it is the same in every call for the same host and service.
pub(super) fn ring<T: Clone>(candidates: &[Candidate<'_, T>], by_client: bool, place: u64) -> Ring<T> {
    let backends = match candidates {
        [only] => vec![only.backend.clone()],
        [] => Vec::new(),
        several if by_client => (0..SLOTS).filter_map(|slot| highest(several, slot)).collect(),
        several => {
            let mut round = round(several);
            let length = round.len() as u64;
            round.rotate_left(usize::try_from(place % length).unwrap_or(0));
            round
        }
    };
    Ring { backends, by_client }
}

/// Each as often as its weight says, at even distances.
fn round<T: Clone>(candidates: &[Candidate<'_, T>]) -> Vec<T> {
    let divisor = candidates.iter().fold(0, |divisor, candidate| greatest_common(divisor, candidate.weight.max(1)));
    let mut turns = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let times = u32::from(candidate.weight.max(1) / divisor);
        turns.extend((0..times).map(|turn| ((2 * turn + 1) * UNIT / times, index)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index)| candidates[index].backend.clone()).collect()
}

/// Half a round, in parts that every weight divides: 2^3 * 3^2 * 5 * 7.
const UNIT: u32 = 2520;

fn greatest_common(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { greatest_common(b, a % b) }
}

/// A backend of weight n has n tries a slot, which makes its share n times another's.
fn highest<T: Clone>(candidates: &[Candidate<'_, T>], slot: u64) -> Option<T> {
    let score =
        |candidate: &Candidate<'_, T>| (0..candidate.weight.max(1)).map(|try_| hash(slot, candidate.key, try_)).max();
    candidates.iter().max_by_key(|candidate| (score(candidate), candidate.key)).map(|best| best.backend.clone())
}

fn hash(slot: u64, key: &str, try_: u8) -> u64 {
    let mut hash = fnv(slot.to_le_bytes().into_iter().chain(key.bytes()).chain([try_]));
    // The last bytes of FNV-1a hardly reach its upper bits; these are the steps that end MurmurHash3.
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

/// FNV-1a: spreads, and is the same everywhere and always.
pub(super) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: [&str; 5] = ["task0", "task1", "task2", "task3", "task4"];

    fn candidates(weights: &[u8]) -> Vec<Candidate<'static, usize>> {
        let one = |(backend, weight): (usize, &u8)| Candidate { backend, weight: *weight, key: TASKS[backend] };
        weights.iter().enumerate().map(one).collect()
    }

    fn share(ring: &Ring<usize>, backend: usize) -> usize {
        ring.backends.iter().filter(|b| **b == backend).count()
    }

    #[test]
    fn weights_are_kept_exactly_and_spread_evenly() {
        assert_eq!(ring(&candidates(&[1, 1, 1]), false, 1).backends, [1, 2, 0]);
        assert_eq!(ring(&candidates(&[4, 4]), false, 0).backends, [0, 1]);
        assert_eq!(ring(&candidates(&[3, 1]), false, 0).backends, [0, 0, 1, 0]);
        assert_eq!(ring(&candidates(&[2, 3, 1]), false, 0).backends, [1, 0, 1, 2, 0, 1]);
        assert_eq!(ring(&candidates(&[5]), false, 7).backends, [0]);
        assert!(ring(&candidates(&[]), false, 7).backends.is_empty());
    }

    #[test]
    fn a_client_keeps_its_backend_while_others_come_and_go() {
        let five = ring(&candidates(&[1, 1, 1, 1, 1]), true, 0);
        assert_eq!(five, ring(&candidates(&[1, 1, 1, 1, 1]), true, 3), "the same on every host");
        for backend in 0..5 {
            assert!((75..=130).contains(&share(&five, backend)), "{backend}: {}", share(&five, backend));
        }
        let four = ring(&candidates(&[1, 1, 1, 1]), true, 0);
        let moved = five.backends.iter().zip(&four.backends).filter(|(a, b)| a != b).count();
        assert_eq!(moved, share(&five, 4), "only the clients of the one that went");
    }

    #[test]
    fn weights_hold_by_client_too() {
        let ring = ring(&candidates(&[3, 1]), true, 0);
        assert!((350..=420).contains(&share(&ring, 0)), "{} of 512", share(&ring, 0));
    }
}
