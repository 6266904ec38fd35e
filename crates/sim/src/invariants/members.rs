//! Who should manage does, and votes, and nobody else: consensus, the nodes' objects and what users want of them agree once the
//! world has settled.

use std::collections::BTreeSet;

use skep_model::node::Role;

use super::{Holds, Invariant, Settled};
use crate::roles::seats;

pub(crate) struct Members;

impl Invariant for Members {
    fn settled(&mut self, world: &Settled) -> Holds {
        let Some((host, view)) = world.managers.first() else { return Err("nobody manages".into()) };
        for node in view.nodes() {
            let (name, shall) = (&node.description.hostname, node.spec.role);
            if node.role != shall || node.manager.is_some() != (shall == Role::Manager) {
                return Err(format!("{name} shall be a {shall:?} and is not: {:?}, {:?}", node.role, node.manager));
            }
        }
        let seats = seats(view);
        let voters: BTreeSet<u64> = world.members.iter().filter(|(_, votes)| *votes).map(|(id, _)| *id).collect();
        if voters != seats || world.members.len() != voters.len() {
            return Err(format!("{host} has the managers {seats:?}, and consensus has {:?}", world.members));
        }
        if world.managers.len() != seats.len() {
            return Err(format!("{} hosts manage, of {}", world.managers.len(), seats.len()));
        }
        Ok(())
    }
}
