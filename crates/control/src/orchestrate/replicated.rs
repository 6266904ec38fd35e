//! The right number of slots.

use std::collections::{BTreeMap, BTreeSet};

use skep_model::NodeId;
use skep_model::service::Service;
use skep_model::task::TaskState;
use skep_store::SlotKey;

use super::slot::{Slot, slots};
use super::{Desk, How};

impl Desk<'_> {
    pub(super) fn replicas(&mut self, service: &Service, replicas: u64) {
        let slots = slots(self.plan.view(), &service.id);
        let occupied: Vec<&Slot> =
            slots.values().filter(|slot| slot.wanted().next().is_some() || self.is_finished(service, slot)).collect();
        let have = u64::try_from(occupied.len()).unwrap_or(u64::MAX);
        if have < replicas {
            let taken: BTreeSet<&SlotKey> = occupied.iter().map(|slot| &slot.key).collect();
            let free = (1..).map(SlotKey::Slot).filter(|key| !taken.contains(key));
            let missing = usize::try_from(replicas - have).unwrap_or(usize::MAX);
            let keys: Vec<SlotKey> = free.take(missing).collect();
            keys.iter().for_each(|key| {
                self.create(service, key, How::at_once());
            });
        } else {
            let surplus = usize::try_from(have - replicas).unwrap_or(usize::MAX);
            for slot in least_missed(occupied).into_iter().take(surplus) {
                for task in &slot.tasks {
                    self.desire(&task.id, TaskState::Remove);
                }
            }
        }
    }
}

/// Slots in the order in which they are given up: those that do not run, then those on nodes with the most of them, so that
/// what is left is spread (swarmkit `slotsByIndex`).
fn least_missed(slots: Vec<&Slot>) -> Vec<&Slot> {
    let mut per_node: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut ranked: Vec<(bool, usize, &Slot)> = Vec::new();
    for slot in slots {
        let runs = slot.runs();
        let node = slot.live().find(|t| !runs || t.status.state == TaskState::Running).and_then(|t| t.node_id.clone());
        let nth = match node.filter(|_| runs) {
            Some(node) => {
                let count = per_node.entry(node).or_default();
                *count += 1;
                *count
            }
            None => 0,
        };
        ranked.push((!runs, nth, slot));
    }
    ranked.sort_by(|a, b| (b.0, b.1, &b.2.key).cmp(&(a.0, a.1, &a.2.key)));
    ranked.into_iter().map(|(_, _, slot)| slot).collect()
}
