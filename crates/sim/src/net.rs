//! The wires between hosts: which way they are cut, how slow and how lossy they are.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::HostId;
use crate::dice::Dice;

/// What a wire may do to a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Of a hundred messages.
    pub(crate) lost: u32,
    pub(crate) twice: u32,
    /// Added to every delay, at most; so messages overtake each other.
    pub(crate) jitter: Duration,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Net {
    /// From, to.
    cut: BTreeSet<(HostId, HostId)>,
    pub(crate) weather: Weather,
}

impl Net {
    pub(crate) fn is_open(&self, from: HostId, to: HostId) -> bool {
        from == to || !self.cut.contains(&(from, to))
    }

    /// Both ways.
    pub(crate) fn reaches(&self, a: HostId, b: HostId) -> bool {
        self.is_open(a, b) && self.is_open(b, a)
    }

    pub(crate) fn cut(&mut self, from: HostId, to: HostId) {
        if from != to {
            self.cut.insert((from, to));
        }
    }

    pub(crate) fn cut_between(&mut self, some: &[HostId], others: &[HostId]) {
        for a in some {
            for b in others {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.weather = Weather::default();
    }

    pub(crate) fn delay(&self, from: HostId, to: HostId, dice: &mut Dice) -> Duration {
        if from == to {
            return Duration::from_micros(50);
        }
        let base = dice.between(Duration::from_micros(200), Duration::from_micros(900));
        if self.weather.jitter.is_zero() { base } else { base + dice.between(Duration::ZERO, self.weather.jitter) }
    }

    pub(crate) fn loses(&self, from: HostId, to: HostId, dice: &mut Dice) -> bool {
        from != to && self.weather.lost > 0 && dice.percent(self.weather.lost)
    }

    pub(crate) fn doubles(&self, from: HostId, to: HostId, dice: &mut Dice) -> bool {
        from != to && self.weather.twice > 0 && dice.percent(self.weather.twice)
    }
}
