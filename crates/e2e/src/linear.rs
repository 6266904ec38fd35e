//! Whether a history of concurrent operations on one register can be put in a line: each at one instant between its call and its
//! answer, each answer being the one a single register would give (Herlihy and Wing; the search is Wing and Gong's with
//! Lowe's memory of states that were tried).

use std::collections::HashSet;

/// What was asked of the register, and answered. Values are small numbers; 0 is what it holds at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answered with the value.
    Read(u32),
    /// Put `to` where `from` was.
    Swapped { from: u32, to: u32 },
    /// Refused since the value was not `from`.
    Refused { from: u32 },
    /// No answer, or one that leaves it open: done at some instant after the call, or never.
    Unknown { from: u32, to: u32 },
}

/// One operation; times count from any common beginning.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub called_ns: u128,
    /// Of an unknown one, it does not count.
    pub answered_ns: u128,
    pub action: Action,
}

impl Operation {
    fn latest(&self) -> u128 {
        if matches!(self.action, Action::Unknown { .. }) { u128::MAX } else { self.answered_ns }
    }

    /// The value after it, if it can stand where the register holds `value`.
    fn apply(&self, value: u32) -> Option<u32> {
        match self.action {
            Action::Read(seen) => (seen == value).then_some(value),
            Action::Swapped { from, to } | Action::Unknown { from, to } => (from == value).then_some(to),
            Action::Refused { from } => (from != value).then_some(value),
        }
    }
}

/// Whether there is such a line. `Err` holds the operations of the longest line that was found and those that would have had to
/// come next.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let mut search = Search { history, tried: HashSet::new(), longest: Vec::new() };
    if search.go_on(&mut vec![false; history.len()], 0, &mut Vec::new()) {
        return Ok(());
    }
    let line: Vec<String> = search.longest.iter().rev().take(6).rev().map(|i| format!("{:?}", history[*i])).collect();
    let after: Vec<String> = (0..history.len())
        .filter(|i| !search.longest.contains(i) && !matches!(history[*i].action, Action::Unknown { .. }))
        .map(|i| format!("{:?}", history[i]))
        .take(6)
        .collect();
    Err(format!("no line: after\n  {}\nnone of these fits:\n  {}", line.join("\n  "), after.join("\n  ")))
}

struct Search<'a> {
    history: &'a [Operation],
    tried: HashSet<(Vec<bool>, u32)>,
    longest: Vec<usize>,
}

impl Search<'_> {
    fn go_on(&mut self, done: &mut Vec<bool>, value: u32, line: &mut Vec<usize>) -> bool {
        if line.len() > self.longest.len() {
            self.longest.clone_from(line);
        }
        let open = |i: &usize| !done[*i];
        // What is unknown need not have happened.
        if (0..done.len()).filter(open).all(|i| matches!(self.history[i].action, Action::Unknown { .. })) {
            return true;
        }
        if !self.tried.insert((done.clone(), value)) {
            return false;
        }
        // Nothing may stand behind an operation that was answered before it was called.
        let first_answer = (0..done.len()).filter(open).map(|i| self.history[i].latest()).min().unwrap_or(u128::MAX);
        let candidates: Vec<usize> =
            (0..done.len()).filter(open).filter(|i| self.history[*i].called_ns <= first_answer).collect();
        for i in candidates {
            let Some(next) = self.history[i].apply(value) else { continue };
            done[i] = true;
            line.push(i);
            if self.go_on(done, next, line) {
                return true;
            }
            line.pop();
            done[i] = false;
            // What changes nothing can always stand as early as it fits: if that led nowhere, nothing does.
            if next == value && matches!(self.history[i].action, Action::Read(_) | Action::Refused { .. }) {
                return false;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::Action::*;
    use super::*;

    /// Called, answered, what.
    type Row = (u128, u128, Action);

    fn history(rows: &[Row]) -> Vec<Operation> {
        rows.iter().map(|&(called_ns, answered_ns, action)| Operation { called_ns, answered_ns, action }).collect()
    }

    #[test]
    fn what_a_register_does_is_taken() {
        let one_of_two = [(0, 10, Swapped { from: 0, to: 1 }), (0, 10, Refused { from: 0 }), (11, 12, Read(1))];
        assert!(check(&history(&one_of_two)).is_ok());
        // The write took effect before it was answered.
        assert!(check(&history(&[(0, 20, Swapped { from: 0, to: 1 }), (5, 6, Read(1)), (7, 8, Read(1))])).is_ok());
        // A lost write took effect long after, or never.
        let late = [(0, 1, Unknown { from: 0, to: 1 }), (2, 3, Read(0)), (4, 5, Read(1))];
        assert!(check(&history(&late)).is_ok());
        assert!(check(&history(&late[..2])).is_ok());
    }

    #[test]
    fn what_no_register_does_is_not() {
        let bad: [(&str, &[Row]); 6] = [
            ("two for one", &[(0, 10, Swapped { from: 0, to: 1 }), (0, 10, Swapped { from: 0, to: 2 })]),
            ("a stale read", &[(0, 1, Swapped { from: 0, to: 1 }), (2, 3, Read(0))]),
            ("a lost write", &[(0, 1, Swapped { from: 0, to: 1 }), (2, 3, Swapped { from: 0, to: 2 })]),
            ("a refusal without reason", &[(0, 1, Refused { from: 0 }), (2, 3, Swapped { from: 0, to: 1 })]),
            ("refused and done all the same", &[(0, 1, Refused { from: 0 }), (2, 3, Read(1))]),
            ("back in time", &[(0, 9, Swapped { from: 0, to: 1 }), (2, 3, Read(1)), (4, 5, Read(0))]),
        ];
        for (what, rows) in bad {
            assert!(check(&history(rows)).is_err(), "{what}");
        }
    }
}
