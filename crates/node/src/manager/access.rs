//! Who may make which call.
//!
//! A certificate says who somebody is; the replicated state says what that is worth now. Every call but the two of `Ca` comes
//! through here:
//!
//! | caller | `Ca` | `Dispatcher` | `Control` | `Raft` |
//! |---|---|---|---|---|
//! | no certificate | a token decides | no | no | no |
//! | worker | renews its own | yes, of itself | no | no |
//! | manager | renews its own | yes, of itself | yes | yes |
//! | expired, of a living node | renews its own | no | no | no |
//! | removed, demoted, another swarm's | no | no | no | no |
//!
//! Only `Raft` is answered by managers that may lag behind: what they have not heard of is let in there, what they have heard
//! of going is not.

use std::sync::Arc;

use skep_control::membership::role_due;
use skep_model::cluster::Cluster;
use skep_model::node::{Node, Role};
use skep_store::View;
use tonic::{Request, Status};

use super::Manager;
use crate::agent_loop::REMOVED;
use crate::ca::Identity;
use crate::clock::now;
use crate::transport::peer_of;

/// A certificate of this swarm that has not run out, of a node that was not removed as far as is known here.
fn bearer<T>(request: &Request<T>, manager: &Manager, view: &View) -> Result<Identity, Status> {
    let identity = peer_of(request)?
        .identity
        .ok_or_else(|| Status::unauthenticated("a node certificate is required: join the swarm with a token first"))?;
    if identity.cluster_id != manager.tls().current().identity.cluster_id {
        return Err(other_swarm());
    }
    if identity.has_expired(now()) {
        return Err(Status::unauthenticated("the certificate of this node has expired; it must be renewed first"));
    }
    if view.node(&identity.node_id).is_none() && view.revoked(&identity.node_id).is_some() {
        return Err(removed());
    }
    Ok(identity)
}

pub(super) fn other_swarm() -> Status {
    Status::permission_denied("the certificate is of another swarm")
}

pub(super) fn removed() -> Status {
    Status::permission_denied(REMOVED)
}

/// The node that asks for a new certificate with its old one. An expired one counts only if it is the last the node was seen
/// with: an older copy of its key, from a backup say, is worth nothing (ADR 0010).
pub(super) fn renewing<'a>(identity: &Identity, cluster: &Cluster, view: &'a View) -> Result<&'a Arc<Node>, Status> {
    if identity.cluster_id != cluster.id {
        return Err(other_swarm());
    }
    let node = view.node(&identity.node_id).ok_or_else(|| match view.revoked(&identity.node_id) {
        Some(_) => removed(),
        None => Status::unavailable("this manager has not heard of the node yet"),
    })?;
    let last = &node.description.tls_certificate;
    if identity.has_expired(now()) && !last.is_empty() && *last != identity.certificate {
        return Err(Status::permission_denied(
            "the certificate has expired and is not the last one this node had: remove the node and join again with a token",
        ));
    }
    Ok(node)
}

fn managers_only() -> Status {
    Status::permission_denied("only managers may call this")
}

/// Any node, to a manager that may not know it yet; whoever leads asks [`present`] next.
pub(super) fn member<T>(request: &Request<T>, manager: &Manager) -> Result<Identity, Status> {
    bearer(request, manager, &manager.view())
}

/// For the leader, whose state is the newest there is: the node is in it.
pub(super) fn present(identity: &Identity, manager: &Manager) -> Result<(), Status> {
    manager.view().node(&identity.node_id).map(drop).ok_or_else(removed)
}

/// A manager by certificate and by the state here, so for calls to the leader and to managers that are up to date.
pub(super) fn of_manager<T>(request: &Request<T>, manager: &Manager) -> Result<Identity, Status> {
    let view = manager.view();
    let identity = bearer(request, manager, &view)?;
    if identity.role != Role::Manager || view.node(&identity.node_id).is_some_and(|n| role_due(n) != Role::Manager) {
        return Err(managers_only());
    }
    Ok(identity)
}

/// A manager, unless it was told here that the certificate is from before a demotion. One it has not heard of may be the very
/// leader it must hear it from.
pub(super) fn raft_peer<T>(request: &Request<T>, manager: &Manager) -> Result<Identity, Status> {
    let view = manager.view();
    let identity = bearer(request, manager, &view)?;
    if identity.role != Role::Manager || is_void(&identity, &view) {
        return Err(managers_only());
    }
    Ok(identity)
}

/// From before the node was demoted or removed, though it may be a manager again.
fn is_void(identity: &Identity, view: &View) -> bool {
    view.revoked(&identity.node_id).is_some_and(|at| identity.issued_at() < at.0 / 1_000_000_000)
}

/// A manager that is to take part in consensus, where nobody would listen to a certificate from before its demotion.
pub(super) fn of_joiner<T>(request: &Request<T>, manager: &Manager) -> Result<Identity, Status> {
    let identity = of_manager(request, manager)?;
    if is_void(&identity, &manager.view()) {
        return Err(Status::unauthenticated("the certificate is from before a demotion; it must be renewed first"));
    }
    Ok(identity)
}
