//! A container's address is its own while it lives: every prefix of the log has its attachment, with that address; and at
//! rest the attachments are those of the living containers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Entry, Holds, Invariant, Settled, State};
use crate::places::Key;

#[derive(Default)]
pub(crate) struct Places {
    living: BTreeMap<Key, Ipv4Addr>,
}

fn has(state: &State, (network, container): &Key, address: Ipv4Addr) -> bool {
    let attachment = state.networks.get(network).and_then(|n| n.attachments.get(container));
    attachment.is_some_and(|attachment| attachment.address == Some(address))
}

impl Invariant for Places {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        match self.living.iter().find(|(key, address)| !has(entry.state, key, **address)) {
            Some(((_, container), address)) => {
                Err(format!("container {} lives and lost {address} at entry {}", container.short(), entry.index))
            }
            None => Ok(()),
        }
    }

    fn placed(&mut self, key: &Key, address: Ipv4Addr, state: &State) -> Holds {
        let other = self.living.iter().find(|((network, _), there)| *network == key.0 && **there == address);
        if let Some(((_, other), _)) = other {
            return Err(format!("containers {} and {} both have {address}", other.short(), key.1.short()));
        }
        if !has(state, key, address) {
            return Err(format!("container {} starts with {address}, which is not its own", key.1.short()));
        }
        self.living.insert(key.clone(), address);
        Ok(())
    }

    fn left(&mut self, key: &Key) {
        self.living.remove(key);
    }

    fn settled(&mut self, world: &Settled) -> Holds {
        for (host, view) in &world.managers {
            let known: BTreeMap<_, _> = view
                .networks()
                .flat_map(|n| n.attachments.iter().map(|(container, a)| ((n.id.clone(), container.clone()), a)))
                .filter_map(|(key, a)| Some((key, a.address?)))
                .collect();
            if known != self.living {
                return Err(format!("{host} has attachments {known:?}, and there are {:?}", self.living));
            }
        }
        Ok(())
    }
}
