//! The root key and what it signs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use sha2::{Digest, Sha256};
use skep_model::cluster::RootCa;
use skep_model::{ClusterId, NodeId};

use super::certificate::CaCertificate;
use super::identity::{Role, role_ou};
use crate::error::{NodeError, Result};

/// swarmkit `rootCN` and `RootCAExpiration`.
const ROOT_CN: &str = "swarm-ca";
const ROOT_LIFE: Duration = Duration::from_secs(630_720_000);
/// swarmkit `CertBackdate`: clocks of joining hosts may be behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(3_600);

impl From<rcgen::Error> for NodeError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// `sha256:<hex>` of a root certificate's PEM, as a join token pins it.
pub(crate) fn root_digest(cert_pem: &str) -> String {
    format!("sha256:{}", hex_of(&Sha256::digest(cert_pem.trim().as_bytes())))
}

pub(super) fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn set_validity(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + life;
}

fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f; // a positive ASN.1 integer
    SerialNumber::from_slice(&bytes)
}

/// A member's key; the certificate over it comes from a manager.
pub(crate) struct NodeKey(KeyPair);

impl NodeKey {
    pub(crate) fn generate() -> Result<Self> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// A request for a certificate: proves possession of the key and says nothing else, since the signer decides the rest.
    pub(crate) fn request_pem(&self) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.pem()?)
    }

    pub(crate) fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

pub(crate) struct SignedCertificate {
    /// The certificate, and after it what links it to older roots.
    pub(crate) cert_pem: String,
}

/// The names in a certificate, swarmkit's: the role and the node's id; managers also answer as the CA.
pub(super) fn names_of(node_id: &NodeId, role: Role) -> Vec<String> {
    let mut names = vec![role_ou(role).to_owned(), node_id.to_string()];
    if role == Role::Manager {
        names.push(ROOT_CN.to_owned());
    }
    names
}

/// Holds the key that signs; on managers only.
pub(crate) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    intermediates: String,
}

impl Signer {
    /// A new swarm's root.
    pub(crate) fn create_root() -> Result<RootCa> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, ROOT_CN);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        set_validity(&mut params, ROOT_LIFE);
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(RootCa { digest: root_digest(&cert_pem), key_pem: key.serialize_pem(), cert_pem, ..RootCa::default() })
    }

    /// Signs with what the swarm signs with now: the new root's key from the moment a rotation begins.
    pub(crate) fn of(root: &RootCa) -> Result<Self> {
        let (cert_pem, key_pem) = root.signing();
        Self::new(cert_pem, key_pem, root.intermediates())
    }

    pub(super) fn new(cert_pem: &str, key_pem: &str, intermediates: &str) -> Result<Self> {
        let issuer = Issuer::from_ca_cert_pem(cert_pem, KeyPair::from_pem(key_pem)?)?;
        Ok(Self { issuer, intermediates: intermediates.to_owned() })
    }

    /// This other root as this one would have it: same name, same key, signed here. A node that trusts only this root
    /// accepts through it what the other has signed.
    pub(super) fn cross_sign(&self, other: &CaCertificate) -> Result<String> {
        let mut params = other.params.clone();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        Ok(params.signed_by(&other.key, &self.issuer)?.pem())
    }

    /// Signs the key of a request. Whatever names the request carries are dropped: who the bearer is, is decided here.
    pub(crate) fn sign(
        &self,
        request_pem: &str,
        node_id: &NodeId,
        role: Role,
        cluster_id: &ClusterId,
        life: Duration,
    ) -> Result<SignedCertificate> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(NodeError::Certificate("the key of a request must be ECDSA P-256".into()));
        }
        let mut params = CertificateParams::new(names_of(node_id, role))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, cluster_id.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role_ou(role));
        params.distinguished_name.push(DnType::CommonName, node_id.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(random_serial());
        set_validity(&mut params, life);
        let leaf = params.signed_by(&request.public_key, &self.issuer)?.pem();
        Ok(SignedCertificate { cert_pem: leaf + &self.intermediates })
    }
}
