//! Acknowledged writes survive: the entry a user was told of is in every manager's log, and did what was asked.

use std::collections::BTreeMap;

use super::{Entry, Evidence, Holds, Invariant, Settled};

#[derive(Default)]
pub(crate) struct Acknowledged {
    told: Vec<(u64, Evidence)>,
    /// What is in the log, by index.
    entries: BTreeMap<u64, Vec<skep_store::Event>>,
}

impl Invariant for Acknowledged {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        self.entries.insert(entry.index, entry.events.to_vec());
        Ok(())
    }

    fn acknowledged(&mut self, index: u64, evidence: &Evidence) {
        self.told.push((index, evidence.clone()));
    }

    fn settled(&mut self, world: &Settled) -> Holds {
        for (index, evidence) in &self.told {
            if !self.entries.get(index).is_some_and(|events| evidence.is_in(events)) {
                return Err(format!("entry {index} was acknowledged and is not what was written: {evidence:?}"));
            }
            for (host, view) in &world.managers {
                if view.index() < *index {
                    return Err(format!(
                        "{host} is at entry {} and lacks {index}, which was acknowledged",
                        view.index()
                    ));
                }
            }
        }
        Ok(())
    }
}
