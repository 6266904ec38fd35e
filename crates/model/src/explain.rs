//! Why a service is not as it was asked for, in sentences: what `skep service explain` shows. Not Docker's, so the names in
//! its JSON are our own.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Explanation {
    pub service: String,
    /// How many tasks there are of how many, in one sentence.
    pub summary: String,
    /// There is nothing more to do, and nothing wrong.
    pub as_asked: bool,
    /// What stands in the way, what matters most first.
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Finding {
    pub about: Topic,
    pub says: String,
    /// What the user can do about it; empty if it only takes time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// In the order in which findings are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// An update or rollback is paused or under way.
    Update,
    /// An image cannot be had.
    Image,
    /// Tasks end, or do not become healthy.
    Failing,
    /// Tasks have no address or port.
    Address,
    /// Tasks have no node.
    Placement,
    /// Tasks are on their way.
    Starting,
    /// Tasks are on nodes that are down, drained or silent.
    Node,
}
