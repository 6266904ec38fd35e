//! Who manages: promotions, demotions and what was left half done, on the leader (`manager/roles.rs`) and on the node that
//! changes (`member.rs`). Consensus moves first and the node's object after.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skep_control::membership;
use skep_model::NodeId;
use skep_model::node::{ManagerInfo, Role};
use skep_store::{Batch, Change, ObjectKey, View};

use crate::HostId;
use crate::log::{Failure, Move, Ticket};
use crate::trace::Detail;
use crate::world::{Asker, Event, World, host_of, node_id};

const RETRY: Duration = Duration::from_secs(1);
/// A manager that is not let in asks again.
pub(crate) const JOIN_AGAIN: Duration = Duration::from_millis(500);

/// What a change of the members, or the write after it, is for.
#[derive(Clone, Debug)]
enum Step {
    Demote(NodeId),
    /// First its old raft id goes, if it has one.
    Leave(HostId, u64),
    Join(HostId, u64),
    Write(Option<HostId>),
    Tidy,
}

/// The members as the leader changes them.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// Steps under way, oldest first.
    steps: BTreeMap<Ticket, Step>,
    /// When to look in any case.
    due: Duration,
}

impl Roster {
    fn entering(&self, raft_id: u64) -> bool {
        self.steps.values().any(|s| matches!(s, Step::Join(_, id) | Step::Leave(_, id) if *id == raft_id))
    }
}

pub(crate) fn manager_info(host: HostId, raft_id: u64) -> ManagerInfo {
    let address = ([192, 168, 0, u8::try_from(host.0 + 1).unwrap_or(u8::MAX)], 2377).into();
    ManagerInfo { raft_id, address }
}

impl World {
    /// The leader looks whether consensus and the nodes' objects agree, one thing at a time.
    pub(crate) fn round(&mut self, host: HostId, reign: u64) {
        let (now, view, members) = (self.now, self.log.view(host), self.log.members(host));
        let Some(leader) = self.leader(host).filter(|l| l.reign == reign) else { return };
        if leader.roster.due <= now {
            leader.roster.due = now + RETRY;
            self.after(RETRY, Event::Round { host, reign });
        }
        let Some(leader) = self.leader(host) else { return };
        if !leader.roster.steps.is_empty() {
            return;
        }
        let (term, clock) = (leader.term, self.hosts[host.0].clock(now));
        if let Some((node, raft_id)) =
            membership::to_demote(&view).into_iter().find(|(_, id)| self.can_remove(host, *id))
        {
            let demoted = host_of(&node);
            let step = if demoted == host { self.heir(host).map(Move::HandOver) } else { Some(Move::Remove(raft_id)) };
            if let Some(step) = step {
                self.move_members(host, step, Step::Demote(node));
            }
            return;
        }
        let stranger = members
            .iter()
            .map(|(id, _)| *id)
            .find(|id| *id != self.log.raft_id(host) && !membership::is_known(&view, *id));
        if let Some(stranger) = stranger {
            return self.move_members(host, Move::Remove(stranger), Step::Tidy);
        }
        let members: BTreeSet<u64> = members.into_iter().map(|(id, _)| id).collect();
        if let Some(node) = membership::unseated(&view, &members).next() {
            let gone = Change::SetNodeManager { node_id: node.id.clone(), manager: None };
            let batch = Batch::new(clock, vec![gone]).if_version(ObjectKey::Node(node.id.clone()), node.meta.version);
            self.write_roles(host, term, batch, None);
        }
    }

    /// Whether the managers that would be left are a quorum among themselves.
    pub(crate) fn can_remove(&self, from: HostId, raft_id: u64) -> bool {
        let voters: Vec<u64> =
            self.log.members(from).into_iter().filter(|(_, votes)| *votes).map(|(id, _)| id).collect();
        if !voters.contains(&raft_id) {
            return true;
        }
        let reached = |id: &u64| {
            let host = self.all_hosts().into_iter().find(|h| self.log.raft_id(*h) == *id);
            host.is_some_and(|h| self.net.reaches(from, h) && self.hosts[h.0].daemon.is_some())
        };
        voters.iter().filter(|id| **id != raft_id && reached(id)).count() > (voters.len() - 1) / 2
    }

    /// Another voter that is reached.
    fn heir(&self, host: HostId) -> Option<u64> {
        let own = self.log.raft_id(host);
        let voters = self.log.members(host).into_iter().filter(|(id, votes)| *votes && *id != own);
        let ids: BTreeSet<u64> = voters.map(|(id, _)| id).collect();
        let reached = |h: &HostId| self.net.reaches(host, *h) && self.hosts[h.0].daemon.is_some();
        self.all_hosts().into_iter().filter(reached).map(|h| self.log.raft_id(h)).find(|id| ids.contains(id))
    }

    fn move_members(&mut self, host: HostId, change: Move, step: Step) {
        self.tell(Detail::Step, format!("{host}: {change:?} for {step:?}"));
        let ticket = self.log.change(host, change);
        if let Some(leader) = self.leader(host) {
            leader.roster.steps.insert(ticket, step);
        }
    }

    fn write_roles(&mut self, host: HostId, term: u64, batch: Batch, joiner: Option<HostId>) {
        let ticket = self.log.propose(host, Some(term), batch.in_term(term));
        self.asked.insert(ticket, Asker::Roster { host });
        if let Some(leader) = self.leader(host) {
            leader.roster.steps.insert(ticket, Step::Write(joiner));
        }
    }

    /// What became of a change of the members.
    pub(crate) fn members_changed(&mut self, host: HostId, ticket: Ticket, outcome: &Result<(), String>) {
        let (view, clock) = (self.log.view(host), self.hosts[host.0].clock(self.now));
        let Some(leader) = self.leader(host) else { return };
        let term = leader.term;
        let Some(step) = leader.roster.steps.remove(&ticket) else { return };
        if let Err(why) = outcome {
            self.tell(Detail::Step, format!("{host}: the members are not changed for {step:?}: {why}"));
            return;
        }
        self.tell(Detail::Step, format!("{host}: consensus has {:?}", self.log.members(host)));
        let changes = match step {
            Step::Demote(node) if host_of(&node) != host => membership::demoted(&node),
            Step::Leave(joiner, raft_id) => {
                return self.move_members(host, Move::Join(joiner, raft_id), Step::Join(joiner, raft_id));
            }
            Step::Join(joiner, raft_id) => {
                let Some(node) = view.node(&node_id(joiner)) else { return };
                let batch = Batch::new(clock, membership::joined(node, manager_info(joiner, raft_id)));
                return self.write_roles(host, term, batch, Some(joiner));
            }
            Step::Demote(_) | Step::Tidy | Step::Write(_) => return,
        };
        self.write_roles(host, term, Batch::new(clock, changes), None);
    }

    pub(crate) fn roster_wrote(&mut self, host: HostId, ticket: Ticket, outcome: &Result<u64, Failure>) {
        let Some(leader) = self.leader(host) else { return };
        let Some(Step::Write(Some(joiner))) = leader.roster.steps.remove(&ticket) else { return };
        if outcome.is_ok() {
            self.tell(Detail::Story, format!("{joiner} is a manager"));
        }
    }

    /// Somebody asks this manager to be let in.
    fn asked_to_let_in(&mut self, host: HostId, joiner: HostId) {
        let (view, raft_id) = (self.log.view(host), self.log.raft_id(joiner));
        let Some(node) = view.node(&node_id(joiner)).filter(|n| n.spec.role == Role::Manager) else { return };
        let Some(leader) = self.leader(host).filter(|l| !l.roster.entering(raft_id)) else { return };
        if leader.roster.steps.values().any(|s| matches!(s, Step::Write(Some(asked)) if *asked == joiner)) {
            return;
        }
        match node.manager.as_ref().map(|m| m.raft_id).filter(|id| *id != raft_id) {
            Some(old) => self.move_members(host, Move::Remove(old), Step::Leave(joiner, raft_id)),
            None => self.move_members(host, Move::Join(joiner, raft_id), Step::Join(joiner, raft_id)),
        }
    }

    /// The leader wants this node to have another role: it gets a certificate for it.
    pub(crate) fn told_role(&mut self, host: HostId, role: Role) {
        let life = self.hosts[host.0].life;
        let takes = self.dice.wire.millis(20, 150);
        self.after(takes, Event::Certificate { host, life, role });
    }

    pub(crate) fn has_certificate(&mut self, host: HostId, role: Role) {
        if self.hosts[host.0].role != role {
            self.hosts[host.0].role = role;
            self.tell(Detail::Story, format!("{host} has the certificate of a {role:?}"));
            // The connection shows the old one.
            self.line_ended(host, false);
        }
        self.follow_role(host);
    }

    /// Makes the manager the certificate says there should be, or ends the one it says there should not.
    pub(crate) fn follow_role(&mut self, host: HostId) {
        let there = &mut self.hosts[host.0];
        let Some(daemon) = &mut there.daemon else { return };
        match there.role {
            Role::Manager if !there.has_log => {
                there.has_log = true;
                daemon.log_stopped = false;
                self.log.begin(host);
                self.ask_to_join(host);
            }
            Role::Worker if there.has_log => {
                there.has_log = false;
                let led = daemon.leader.as_ref().map(|l| l.term);
                self.log.end(host);
                if let Some(term) = led {
                    self.leadership(host, term, false);
                }
                self.tell(Detail::Story, format!("{host} is no manager any more"));
            }
            Role::Manager | Role::Worker => {}
        }
    }

    /// A manager that the leader does not count among them asks to be let in.
    pub(crate) fn ask_to_join(&mut self, host: HostId) {
        let there = &mut self.hosts[host.0];
        let announced = there.known_managers.contains(&host) && self.log.votes(host);
        let Some(daemon) = there.daemon.as_mut().filter(|d| !d.asks_to_join) else { return };
        if !there.has_log || announced {
            return;
        }
        daemon.asks_to_join = true;
        // It may have come to lead before anybody wrote down that it manages.
        let mut known = self.hosts[host.0].known_managers.clone();
        known.push(host);
        let there = |h: &&HostId| self.net.reaches(host, **h) && self.hosts[h.0].daemon.is_some();
        let leading =
            known.iter().filter(there).find(|h| self.hosts[h.0].daemon.as_ref().is_some_and(|d| d.leader.is_some()));
        if let Some(leader) = leading {
            self.asked_to_let_in(*leader, host);
        }
        let life = self.hosts[host.0].life;
        self.after(JOIN_AGAIN, Event::AskToJoin { host, life });
    }

    pub(crate) fn ask_to_join_again(&mut self, host: HostId) {
        if let Some(daemon) = &mut self.hosts[host.0].daemon {
            daemon.asks_to_join = false;
        }
        self.ask_to_join(host);
    }

    /// The leader says who the managers are.
    pub(crate) fn told_managers(&mut self, host: HostId, managers: Vec<HostId>) {
        self.hosts[host.0].known_managers = managers;
        self.ask_to_join(host);
    }
}

/// Managers as a View has them, by raft id.
pub(crate) fn seats(view: &View) -> BTreeSet<u64> {
    view.nodes().filter_map(|n| n.manager.as_ref().map(|m| m.raft_id)).collect()
}
