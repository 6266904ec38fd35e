//! Who is in the cluster and who leads it.

use serde::{Deserialize, Serialize};

/// A manager as the others address it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub raft_id: u64,
    pub address: String,
}

/// Whether a member's vote counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// Counts for the quorum and may lead.
    Voter,
    /// Receives the log and does not count yet.
    Learner,
}

/// A member as the latest known membership records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub peer: Peer,
    pub role: MemberRole,
    pub is_leader: bool,
    /// Last log index the leader knows this member to hold. `None` on a follower, or when nothing was heard yet.
    pub matched_index: Option<u64>,
    /// Milliseconds since the leader last had an answer from it. `None` on a follower, or when nothing was heard yet.
    pub heard_ms_ago: Option<u64>,
}

/// Who leads, as far as this manager knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub term: u64,
    pub leader: Option<Peer>,
    /// This manager leads `term`, a quorum confirmed it, and every entry in its log is applied to its view: it may decide.
    /// Turns false as soon as leadership is lost or no quorum has answered within the lease.
    pub is_leader: bool,
    /// Counts how often it became fit to decide: within a term it may be so, not be so, and be so again.
    pub reign: u64,
}
