//! A request takes effect once, however often it was sent: what was removed is not there again.

use std::collections::BTreeSet;

use skep_model::{NetworkId, ServiceId};
use skep_store::Object;

use super::{Entry, Holds, Invariant};

#[derive(Default)]
pub(crate) struct Once {
    services: BTreeSet<ServiceId>,
    networks: BTreeSet<NetworkId>,
}

impl Invariant for Once {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        for event in entry.events {
            let (new, name) = match &event.object {
                Object::Service(None, Some(new)) => (self.services.insert(new.id.clone()), &new.spec.name),
                Object::Network(None, Some(new)) => (self.networks.insert(new.id.clone()), &new.spec.name),
                _ => continue,
            };
            if !new {
                return Err(format!("{name} was removed, and its creation took effect again at entry {}", entry.index));
            }
        }
        Ok(())
    }
}
