//! Restart counts survive failover: within one template a slot's count never falls, is not below the restarts that were seen
//! (with a delay, in place of a task of the same template), and stays within the policy's attempts.

use std::collections::BTreeMap;

use skep_model::ServiceId;
use skep_store::{Object, SlotKey};

use super::{Entry, Holds, Invariant};

#[derive(Default)]
pub(crate) struct Restarts {
    /// Template and count.
    counts: BTreeMap<(ServiceId, SlotKey), (u64, u64)>,
    /// The same, counted here.
    seen: BTreeMap<(ServiceId, SlotKey), (u64, u64)>,
}

impl Invariant for Restarts {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        for event in entry.events {
            let Object::Task(old, Some(task)) = &event.object else { continue };
            let (Some(slot), Some(service)) = (SlotKey::of(task), entry.view.service(&task.service_id)) else {
                continue;
            };
            let key = (task.service_id.clone(), slot);
            let now = entry.view.restarts(&key.0, &key.1).map_or((0, 0), |r| (r.spec_version, r.total));
            let seen = self.seen.entry(key.clone()).or_default();
            if old.is_none() {
                let begins = if seen.0 == task.spec_version { seen.1 } else { 0 };
                let before = task.replaces.as_ref().and_then(|id| entry.state.tasks.get(id));
                // One that must not run twice comes after whatever may still run, which need not be what it is made for.
                let again = task.start_after.is_some()
                    && task.stop_after().is_none()
                    && before.is_some_and(|b| b.spec_version == task.spec_version);
                *seen = (task.spec_version, begins + u64::from(again));
            }
            if now.0 == seen.0 && now.1 < seen.1 {
                return Err(format!(
                    "{} was restarted {} times, and the store says {}",
                    task.slot_name(),
                    seen.1,
                    now.1
                ));
            }
            let before = self.counts.insert(key, now).unwrap_or_default();
            if before.1 > now.1 && (now.0 == before.0 || now.0 == 0) {
                let (was, is) = (before.1, now.1);
                return Err(format!("{} was restarted {was} times, and now {is} times", task.slot_name()));
            }
            let policy = service.spec.task.restart.unwrap_or_default();
            let bounded = policy.max_attempts > 0 && policy.window.is_zero() && now.0 == service.spec_version;
            if bounded && now.1 > policy.max_attempts {
                let most = policy.max_attempts;
                return Err(format!("{} was restarted {} times of at most {most}", task.slot_name(), now.1));
            }
        }
        Ok(())
    }
}
