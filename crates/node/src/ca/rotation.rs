//! From one root to the next: what `docker swarm ca --rotate` asks for, and when it is done.
//!
//! The new root is cross-signed by the old one and signs from then on; nodes go on trusting the old root and accept the new
//! certificates through the cross-signed one. When every node has a new certificate the new root takes the old one's place,
//! and nodes are told to trust it instead. The rules are swarmkit's (`manager/controlapi/ca_rotation.go`).

use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData};
use skep_model::cluster::{Cluster, ClusterSpec, JoinTokens, RootCa, RootRotation};
use skep_model::node::Role;
use skep_model::{NodeId, Timestamp};

use super::certificate::{CaCertificate, check_chain};
use super::root::{NodeKey, Signer, root_digest};
use super::token::new_tokens;
use crate::error::{NodeError, Result};

/// swarmkit `minRootExpiration`.
const MIN_ROOT_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A root that a user brings, as PEM; both empty if none.
#[derive(Clone, Default)]
pub struct RootRequest {
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for RootRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootRequest(..)")
    }
}

fn invalid<T>(text: impl ToString) -> Result<T> {
    Err(NodeError::Invalid(text.to_string()))
}

/// Errors about a user's certificate are the user's.
fn of_user(error: NodeError) -> NodeError {
    match error {
        NodeError::Certificate(text) => NodeError::Invalid(text),
        other => other,
    }
}

/// What the root becomes by an update to `spec` with this request: itself, if nothing of it is to change. Whether somebody
/// has the key, if it is not here, is for the caller to see.
pub(crate) fn next_root(
    cluster: &Cluster,
    spec: &ClusterSpec,
    request: &RootRequest,
    now: Timestamp,
) -> Result<RootCa> {
    let old = &cluster.root_ca;
    if !request.key_pem.is_empty() && request.cert_pem.is_empty() {
        return invalid("if a signing CA key is provided, the signing CA cert must also be provided");
    }
    if request.cert_pem.is_empty() {
        if old.last_forced_rotation == spec.force_rotate {
            return Ok(old.clone());
        }
        let fresh = Signer::create_root()?;
        return rotate(old, &CaCertificate::parse(&fresh.cert_pem)?, fresh.key_pem, spec.force_rotate);
    }
    let wanted = CaCertificate::parse(&request.cert_pem).map_err(of_user)?;
    let key_pem = match request.key_pem.is_empty() {
        true => String::new(),
        false => {
            let key = KeyPair::from_pem(&request.key_pem)
                .map_err(|error| NodeError::Invalid(format!("could not parse the desired CA key: {error}")))?;
            if key.subject_public_key_info() != wanted.raw_key {
                return invalid("certificate key mismatch");
            }
            key.serialize_pem()
        }
    };
    if wanted.not_after < now.plus(MIN_ROOT_LIFE).0 / 1_000_000_000 {
        return invalid("CA certificate expires too soon");
    }
    let current = CaCertificate::parse(&old.cert_pem)?;
    if current.pem == wanted.pem {
        // Back to the root there is, perhaps with another holder of its key.
        return Ok(RootCa { key_pem, rotation: None, last_forced_rotation: spec.force_rotate, ..old.clone() });
    }
    if current.raw_key == wanted.raw_key {
        return invalid("Cannot update to a cert with an identical key");
    }
    match &old.rotation {
        Some(next) if next.cert_pem == wanted.pem => {
            let rotation = Some(RootRotation { key_pem, ..next.clone() });
            Ok(RootCa { rotation, last_forced_rotation: spec.force_rotate, ..old.clone() })
        }
        Some(_) | None => rotate(old, &wanted, key_pem, spec.force_rotate).map_err(of_user),
    }
}

fn rotate(old: &RootCa, new: &CaCertificate, key_pem: String, forced: u64) -> Result<RootCa> {
    if old.key_pem.is_empty() {
        return invalid(match key_pem.is_empty() {
            true => "rotating from one external CA to a different external CA is not supported",
            false => "rotating away from an external CA needs its key: give it with --ca-cert and --ca-key first",
        });
    }
    // Signed by the root there is, not by one on its way in: nodes trust nothing else yet.
    let cross_signed_pem = Signer::new(&old.cert_pem, &old.key_pem, "")?.cross_sign(new)?;
    if !key_pem.is_empty() {
        // Before anything depends on it: a certificate of the new root must be good for who trusts the old one, and the new.
        let trial = Signer::new(&new.pem, &key_pem, &cross_signed_pem)?;
        let request = NodeKey::generate()?.request_pem()?;
        let (node, cluster) = (NodeId::from_bits(0), skep_model::ClusterId::from_bits(0));
        let leaf = trial.sign(&request, &node, Role::Worker, &cluster, Duration::from_secs(60))?;
        for root in [&old.cert_pem, &new.pem] {
            check_chain(root, &leaf.cert_pem)
                .map_err(|error| NodeError::Invalid(format!("error while validating Root CA Certificate: {error}")))?;
        }
    }
    let rotation = Some(RootRotation { cert_pem: new.pem.clone(), key_pem, cross_signed_pem });
    Ok(RootCa { rotation, last_forced_rotation: forced, ..old.clone() })
}

/// The new root in the old one's place, with join tokens that pin it; `None` while there is none.
pub(crate) fn finish(root: &RootCa) -> Result<Option<(RootCa, JoinTokens)>> {
    let Some(next) = root.rotation.clone() else { return Ok(None) };
    let digest = root_digest(&next.cert_pem);
    let tokens = new_tokens(&digest)?;
    let new = RootCa {
        cert_pem: next.cert_pem,
        key_pem: next.key_pem,
        digest,
        cross_signed_pem: next.cross_signed_pem,
        rotation: None,
        last_forced_rotation: root.last_forced_rotation,
    };
    Ok(Some((new, tokens)))
}
