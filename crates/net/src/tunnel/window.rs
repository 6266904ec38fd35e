//! Which counts of a session were seen.

const WORDS: u64 = 32;
/// How far behind the highest count another may come.
pub(super) const REACH: u64 = (WORDS - 1) * 64;

/// The highest count seen, and which of those up to [`REACH`] below it; anything older counts as seen (RFC 6479).
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    highest: u64,
    words: [u64; WORDS as usize],
}

fn place(count: u64) -> (usize, u64) {
    (((count / 64) % WORDS) as usize, 1 << (count % 64))
}

impl Window {
    pub(super) fn is_new(&self, count: u64) -> bool {
        let (word, bit) = place(count);
        count > self.highest || (self.highest - count <= REACH && self.words[word] & bit == 0)
    }

    /// For what is authentic only: whoever can mark can make others look seen.
    pub(super) fn mark(&mut self, count: u64) {
        let ahead = (count / 64).saturating_sub(self.highest / 64).min(WORDS);
        for step in 0..ahead {
            self.words[((count / 64 - step) % WORDS) as usize] = 0;
        }
        self.highest = self.highest.max(count);
        let (word, bit) = place(count);
        self.words[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(window: &mut Window, count: u64) -> bool {
        let new = window.is_new(count);
        if new {
            window.mark(count);
        }
        new
    }

    #[test]
    fn every_count_is_new_once_and_the_old_ones_never() {
        let mut window = Window::default();
        for count in [1, 0, 64, 63, 2000, 200, 5000, 4000] {
            assert!(take(&mut window, count), "{count}");
            assert!(!take(&mut window, count), "{count} again");
        }
        assert!(take(&mut window, 5000 - REACH));
        assert!(!take(&mut window, 5000 - REACH - 1), "too old to tell");
        assert!(!take(&mut window, 2000));
        assert!(take(&mut window, u64::MAX));
        assert!(!take(&mut window, 5001));
    }

    #[test]
    fn in_any_order_within_reach_each_is_taken_once() {
        let mut window = Window::default();
        // Steps that are prime to the number of counts visit each of them.
        let count = |at: u64| 10_000 * (at / 1024) + (at * 389) % 1024;
        for at in 0..4096 {
            assert!(take(&mut window, count(at)), "{at}");
        }
        for at in 3072..4096 {
            assert!(!take(&mut window, count(at)), "{at}");
        }
    }
}
