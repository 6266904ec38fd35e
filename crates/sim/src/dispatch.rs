//! The leader's side of every session (`manager/dispatcher.rs`): who is alive, and who is told what.

use std::collections::BTreeMap;

use skep_control::dispatch::{Affected, Assigner, Gossip, KNOCK_AFTER, KNOCK_PERIOD, Knock, PULSE, RECONNECT};
use skep_control::membership;
use skep_model::NodeId;
use skep_model::assignment::AssignmentSet;
use skep_model::node::{NodeState, Role};
use skep_store::{Change, View};

use crate::HostId;
use crate::host::Host;
use crate::leader::{Input, Leader};
use crate::wire::{Down, Up};
use crate::world::{Event, World, host_of};

pub(crate) struct Session {
    pub(crate) stream: u64,
    sent: AssignmentSet,
    sequence: u64,
    needs_all: bool,
    managers: Vec<HostId>,
    /// The role it has, or was last told to take.
    role: Role,
}

pub(crate) fn managers_of(view: &View) -> Vec<HostId> {
    view.nodes().filter(|n| n.manager.is_some()).map(|n| host_of(&n.id)).collect()
}

impl Session {
    fn introduce(&mut self, managers: &[HostId], wanted: Role) -> impl Iterator<Item = Down> + use<> {
        let moved = !managers.is_empty() && self.managers != managers;
        let managers = moved.then(|| {
            self.managers = managers.to_vec();
            Down::Managers(self.managers.clone())
        });
        let role = (wanted != self.role).then(|| {
            self.role = wanted;
            Down::Role(wanted)
        });
        managers.into_iter().chain(role)
    }

    fn tell(&mut self, set: AssignmentSet) -> Option<Down> {
        let results_in = self.sequence + 1;
        let message = if self.needs_all {
            Down::Complete { results_in, set: Box::new(set.clone()) }
        } else {
            let change = self.sent.diff(&set);
            if change.is_empty() {
                return None;
            }
            Down::Incremental { applies_to: self.sequence, results_in, change: Box::new(change) }
        };
        (self.sequence, self.sent, self.needs_all) = (results_in, set, false);
        Some(message)
    }
}

impl World {
    pub(crate) fn manager_hears(&mut self, id: u64, message: Up) {
        let Some((agent, host, open)) = self.streams.get(&id).map(|s| (s.agent, s.manager, s.manager_open)) else {
            return;
        };
        if !open {
            if matches!(message, Up::Closed) {
                self.streams.remove(&id);
            }
            return;
        }
        if self.hosts[host.0].daemon.is_none() {
            // Nobody listens there: the kernel says so.
            self.manager_closes(id);
            return;
        }
        let node_id = self.hosts[agent.0].node_id.clone();
        let live = self.live(host);
        match message {
            Up::Hello(role) => self.open(host, id, agent, role),
            Up::Closed => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.agent_open = false;
                }
                self.manager_closes(id);
                // A broken connection says nothing about the node's tasks: silence decides.
                if let Some(leader) = self.leader(host)
                    && leader.sessions.get(&node_id).is_some_and(|s| s.stream == id)
                {
                    leader.sessions.remove(&node_id);
                    leader.closed.insert(node_id, live);
                }
            }
            Up::Heartbeat { .. } | Up::Reports(_) | Up::Applied(_) | Up::Resync => {
                let Some(leader) = self.leader(host) else { return };
                let Some(session) = leader.sessions.get_mut(&node_id).filter(|s| s.stream == id) else { return };
                leader.liveness.heard(&node_id, live);
                match message {
                    Up::Reports(mut reports) => {
                        // A node speaks for its own tasks only.
                        let view = self.log.view(host);
                        reports.retain(|r| view.task(&r.task_id).is_some_and(|t| t.node_id.as_ref() == Some(&node_id)));
                        if !reports.is_empty() {
                            self.input(host, Input::Reports(reports));
                        }
                    }
                    Up::Applied(sequence) => {
                        leader.balancers.applied(&node_id, sequence);
                        leader.has_news = true;
                        self.dispatch(host);
                    }
                    Up::Resync => {
                        session.needs_all = true;
                        leader.has_news = true;
                        self.dispatch(host);
                    }
                    Up::Hello(_) | Up::Closed => {}
                    Up::Heartbeat { sent } => {
                        self.send_down(id, Down::Heartbeat { sent });
                        self.revive(host, agent, &node_id);
                    }
                }
            }
        }
    }

    fn open(&mut self, host: HostId, id: u64, agent: HostId, role: Role) {
        let node_id = self.hosts[agent.0].node_id.clone();
        let leader_elsewhere = self.log.leader(host);
        let view = self.log.view(host);
        let clock = self.hosts[host.0].clock(self.now);
        let (description, address) = (self.hosts[agent.0].description(), self.hosts[agent.0].address());
        let (live, managers) = (self.live(host), managers_of(&view));
        let Some(leader) = self.leader(host) else {
            if self.hosts[host.0].has_log {
                self.send_down(id, Down::Elsewhere(leader_elsewhere));
            }
            self.manager_closes(id);
            return;
        };
        if view.node(&node_id).is_none() {
            self.manager_closes(id);
            return;
        }
        leader.liveness.heard(&node_id, live);
        leader.closed.remove(&node_id);
        leader.has_news = true;
        let sent = AssignmentSet::default();
        let session = Session { stream: id, sent, sequence: 0, needs_all: true, managers: managers.clone(), role };
        leader.balancers.opened(node_id.clone());
        let old = leader.sessions.insert(node_id.clone(), session);
        if let Some(old) = old {
            self.manager_closes(old.stream);
        }
        let mut changes = membership::ready(&view, &node_id, &description, Some(address), clock);
        changes.extend(membership::carries_role(&view, &node_id, role));
        self.send_down(id, Down::Welcome(managers));
        if !changes.is_empty() {
            self.input(host, Input::Changes(changes));
        }
        self.dispatch(host);
    }

    /// A node called dead that still speaks was only late.
    fn revive(&mut self, host: HostId, agent: HostId, node_id: &NodeId) {
        let view = self.log.view(host);
        let Some(node) = view.node(node_id).filter(|n| n.status.state != NodeState::Ready) else { return };
        let clock = self.hosts[host.0].clock(self.now);
        let address = Some(self.hosts[agent.0].address());
        let changes = membership::ready(&view, node_id, &node.description, address, clock);
        self.input(host, Input::Changes(changes));
    }

    /// Looks who fell silent, by all three witnesses.
    pub(crate) fn pulse(&mut self, host: HostId, reign: u64) {
        let (live, clock) = (self.live(host), self.hosts[host.0].clock(self.now));
        if self.leader(host).is_none_or(|l| l.reign != reign) {
            return;
        }
        let said = self.gossip(host);
        let view = self.log.view(host);
        self.knock(host, &view);
        let Some(leader) = self.leader(host) else { return };
        leader.liveness.gossiped(&said, live);
        let (mut changes, _) = leader.liveness.expire(&view, live);
        let mut dead = Vec::new();
        for change in &mut changes {
            if let Change::SetNodeStatus { node_id, status } = change {
                status.since = clock;
                dead.extend(leader.sessions.remove(node_id).map(|s| s.stream));
                leader.liveness.forget(node_id);
            }
        }
        leader.closed.retain(|node_id, at| {
            let waiting = live.since(*at) < RECONNECT;
            if !waiting {
                changes.extend(membership::disconnected(&view, node_id, clock));
            }
            waiting
        });
        if !changes.is_empty() {
            self.input(host, Input::Changes(changes));
        }
        for stream in dead {
            self.manager_closes(stream);
        }
        self.after(PULSE, Event::Pulse { host, reign });
    }

    /// What gossip would say where this leader is: a daemon that runs and exchanges words with one that does with the leader.
    fn gossip(&mut self, leader: HostId) -> BTreeMap<NodeId, Gossip> {
        let speaks = |h: &Host| h.daemon.is_some() && h.frozen_until <= self.now;
        let talk = |a: HostId, b: HostId| self.net.reaches(a, b) && speaks(&self.hosts[b.0]);
        let peers: Vec<HostId> = self.all_hosts().into_iter().filter(|h| talk(leader, *h)).collect();
        let reached: Vec<bool> =
            self.all_hosts().into_iter().map(|h| peers.iter().any(|p| *p != h && talk(*p, h))).collect();
        let mut said = BTreeMap::new();
        for (there, reached) in self.hosts.iter_mut().zip(reached) {
            let word = if reached {
                there.lost_since = None;
                Gossip::Reached
            } else {
                let since = *there.lost_since.get_or_insert(self.now);
                Gossip::Lost { lasting: self.now.saturating_sub(since) }
            };
            said.insert(there.node_id.clone(), word);
        }
        said
    }

    /// A node that should be heard and is not: does its kernel answer?
    fn knock(&mut self, host: HostId, view: &View) {
        let live = self.live(host);
        for there in self.all_hosts() {
            let node_id = self.hosts[there.0].node_id.clone();
            let answer = if !self.net.reaches(host, there) || !self.hosts[there.0].has_power {
                Knock::Unanswered
            } else if self.hosts[there.0].daemon.is_some() {
                Knock::Open
            } else {
                Knock::Refused
            };
            if view.node(&node_id).is_none_or(|n| n.status.state == NodeState::Down) {
                continue;
            }
            let Some(leader) = self.leader(host) else { return };
            let asked = leader.knocks.get(&node_id).is_some_and(|at| live.since(*at) < KNOCK_PERIOD);
            if !asked && leader.liveness.silent_for(&node_id, live) >= KNOCK_AFTER {
                leader.knocks.insert(node_id.clone(), live);
                leader.liveness.knocked(&node_id, answer);
            }
        }
    }

    /// Tells every session what has changed for it.
    pub(crate) fn dispatch(&mut self, host: HostId) {
        let view = self.log.view(host);
        let Some(leader) = self.leader(host).filter(|l| l.has_news) else { return };
        leader.has_news = false;
        let affected = std::mem::replace(&mut leader.affected, Affected::Nobody);
        let Leader { sessions, balancers, .. } = leader;
        balancers.retain(|id| sessions.contains_key(id));
        let due = balancers.due(&view);
        let managers = managers_of(&view);
        let mut assigner = Assigner::new(&view);
        let mut messages = Vec::new();
        for (node_id, session) in sessions {
            let Some(node) = view.node(node_id) else { continue };
            let stream = session.stream;
            messages.extend(session.introduce(&managers, membership::role_due(node)).map(|m| (stream, m)));
            if !session.needs_all && !affected.contains(node_id) && !due.contains(node_id) {
                continue;
            }
            let mut set = assigner.assignments(node_id);
            set.left = balancers.left(&view, &set);
            if let Some(message) = session.tell(set) {
                balancers.told(node_id, session.sequence, &session.sent);
                messages.push((session.stream, message));
            }
        }
        for (stream, message) in messages {
            self.send_down(stream, message);
        }
    }
}
