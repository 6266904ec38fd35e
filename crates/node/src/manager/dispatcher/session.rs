//! One node's session: what it was told last, so that it is told only what is new.

use std::net::IpAddr;

use skep_model::SessionId;
use skep_model::assignment::AssignmentSet;
use skep_model::cluster::GossipKey;
use skep_model::node::Role;
use tokio::sync::mpsc;
use tonic::Status;

use super::DownStream;
use crate::facade::RemoteManager;
use crate::transport::message::{Down, Facts, Trust, Welcome};
use crate::transport::pack;
use crate::transport::proto::Envelope;

/// Messages to one node under way; a node that does not read gets a complete set once it does.
const DOWN_IN_FLIGHT: usize = 256;

/// What one node was told, and what it is told next.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) address: Option<IpAddr>,
    down: mpsc::Sender<Result<Envelope, Status>>,
    pub(super) sent: AssignmentSet,
    facts: Facts,
    pub(super) sequence: u64,
    /// Nothing sent yet, or the node lost count.
    pub(super) needs_all: bool,
    managers: Vec<RemoteManager>,
    /// The role it has, or was last told to take.
    role: Role,
    /// Number of the gossip key it was told.
    gossip_key: Option<u32>,
    /// What it trusts and has, or was last told to.
    trust: Trust,
}

impl Session {
    /// Welcomes the node: everything else follows.
    pub(super) fn open(welcome: Welcome, address: Option<IpAddr>, role: Role, trust: Trust) -> (Self, DownStream) {
        let (down, stream) = mpsc::channel(DOWN_IN_FLIGHT);
        let session = Self {
            id: welcome.session_id.clone(),
            address,
            down,
            sent: AssignmentSet::default(),
            facts: Facts::default(),
            sequence: 0,
            needs_all: true,
            managers: welcome.managers.clone(),
            role,
            gossip_key: None,
            trust,
        };
        session.send(&Down::Welcome(welcome));
        (session, stream)
    }

    pub(super) fn introduce(&mut self, managers: &[RemoteManager], wanted: Role, trust: Option<&Trust>) {
        if self.managers != managers && self.send(&Down::Managers(managers.to_vec())) {
            self.managers = managers.to_vec();
        }
        if wanted != self.role && self.send(&Down::Role(wanted)) {
            self.role = wanted;
        }
        if let Some(trust) = trust
            && self.trust != *trust
            && self.send(&Down::Trust(trust.clone()))
        {
            self.trust = trust.clone();
        }
    }

    pub(super) fn key(&mut self, key: Option<&GossipKey>) {
        if let Some(key) = key.filter(|k| self.gossip_key != Some(k.number))
            && self.send(&Down::Gossip(key.clone()))
        {
            self.gossip_key = Some(key.number);
        }
    }

    /// Whether anything went out.
    pub(super) fn tell(&mut self, set: AssignmentSet, facts: &Facts) -> bool {
        let results_in = self.sequence + 1;
        let message = if self.needs_all {
            Down::Complete { results_in, facts: facts.clone(), set: Box::new(set.clone()) }
        } else {
            let change = self.sent.diff(&set);
            if change.is_empty() && self.facts == *facts {
                return false;
            }
            Down::Incremental { applies_to: self.sequence, results_in, facts: facts.clone(), change: Box::new(change) }
        };
        if self.send(&message) {
            self.sequence = results_in;
            self.sent = set;
            self.facts = facts.clone();
            self.needs_all = false;
        } else {
            self.needs_all = true;
        }
        !self.needs_all
    }

    /// False if the node has stopped reading, or its session has ended.
    pub(super) fn send(&self, message: &Down) -> bool {
        self.down.try_send(Ok(pack(message))).is_ok()
    }
}
