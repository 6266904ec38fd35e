//! What a certificate says about its bearer.

use sha2::{Digest, Sha256};
use skep_model::{ClusterId, NodeId, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use skep_model::node::Role;

use crate::error::{NodeError, Result};

/// swarmkit's `ManagerRole` and `WorkerRole`.
const MANAGER_OU: &str = "swarm-manager";
const WORKER_OU: &str = "swarm-worker";

pub(crate) fn role_ou(role: Role) -> &'static str {
    match role {
        Role::Manager => MANAGER_OU,
        Role::Worker => WORKER_OU,
    }
}

pub(crate) fn role_from_ou(ou: &str) -> Option<Role> {
    match ou {
        MANAGER_OU => Some(Role::Manager),
        WORKER_OU => Some(Role::Worker),
        _ => None,
    }
}

/// A member, proved by a certificate whose chain was checked in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node_id: NodeId,
    pub(crate) role: Role,
    pub(crate) cluster_id: ClusterId,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// SHA-256 of the certificate, in hex: which of the node's certificates this is.
    pub(crate) certificate: String,
}

impl Identity {
    pub(crate) fn from_der(der: &[u8]) -> Result<Self> {
        let bad = |what: &str| NodeError::Certificate(format!("{what} is missing or malformed"));
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| NodeError::Certificate(e.to_string()))?;
        let subject = certificate.subject();
        let text = |mut values: Box<dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>> + '_>, name| {
            values.next().and_then(|v| v.as_str().ok()).map(str::to_owned).ok_or_else(|| bad(name))
        };
        Ok(Self {
            node_id: text(Box::new(subject.iter_common_name()), "node id")?.parse().map_err(|_| bad("node id"))?,
            role: role_from_ou(&text(Box::new(subject.iter_organizational_unit()), "role")?)
                .ok_or_else(|| bad("role"))?,
            cluster_id: text(Box::new(subject.iter_organization()), "cluster id")?
                .parse()
                .map_err(|_| bad("cluster id"))?,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            certificate: super::root::hex_of(&Sha256::digest(der)),
        })
    }

    /// When it was signed, in seconds since 1970; it is valid from a little earlier.
    pub(crate) fn issued_at(&self) -> i64 {
        self.not_before.saturating_add(super::root::BACKDATE.as_secs().cast_signed())
    }

    pub(crate) fn has_expired(&self, now: Timestamp) -> bool {
        self.not_after < now.0 / 1_000_000_000
    }
}
