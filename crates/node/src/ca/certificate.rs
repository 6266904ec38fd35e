//! Certificates of others, read and checked: roots that users bring, chains that nodes are given.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, SubjectPublicKeyInfo};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::{NodeError, Result};

fn malformed(error: impl std::fmt::Display) -> NodeError {
    NodeError::Certificate(error.to_string())
}

pub(super) fn ders(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<std::result::Result<_, _>>().map_err(malformed)
}

/// The same certificate always as the same text: users' files differ in white space and comments.
pub(super) fn normal_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).filter_map(|at| text.get(at..text.len().min(at + 64))).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// What signed a certificate: DER of its name and of its public key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Issuer {
    pub(crate) subject: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

/// As its own certificate says.
pub(crate) fn issuer_of(ca_pem: &str) -> Result<Issuer> {
    let der = ders(ca_pem)?.into_iter().next().ok_or_else(|| malformed("no certificate in the PEM"))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(malformed)?;
    Ok(Issuer { subject: certificate.subject().as_raw().to_vec(), key: certificate.public_key().raw.to_vec() })
}

/// A root, as far as cross-signing it needs.
pub(super) struct CaCertificate {
    pub(super) pem: String,
    /// Name and validity as they are, and nothing else.
    pub(super) params: CertificateParams,
    pub(super) key: SubjectPublicKeyInfo,
    pub(super) raw_key: Vec<u8>,
    /// Seconds since 1970.
    pub(super) not_after: i64,
}

impl CaCertificate {
    pub(super) fn parse(pem: &str) -> Result<Self> {
        let mut all = ders(pem).map_err(|_| malformed("could not parse the desired CA certificate"))?;
        let der = match (all.pop(), all.is_empty()) {
            (Some(der), true) => der,
            (Some(_), false) => {
                return Err(malformed("the desired CA certificate cannot contain multiple certificates"));
            }
            (None, _) => return Err(malformed("no valid root CA certificates found")),
        };
        let (_, certificate) = X509Certificate::from_der(&der).map_err(malformed)?;
        let mut name = DistinguishedName::new();
        for part in certificate.subject().iter_attributes() {
            let oid: Vec<u64> = part.attr_type().iter().map(Iterator::collect).unwrap_or_default();
            let text = std::str::from_utf8(part.attr_value().data).map_err(malformed)?;
            let value = match part.attr_value().header.tag() {
                Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
                Tag::PrintableString => DnValue::PrintableString(text.try_into()?),
                Tag::Ia5String => DnValue::Ia5String(text.try_into()?),
                other => {
                    return Err(malformed(format!("a name of kind {other} in the CA certificate is not supported")));
                }
            };
            name.push(DnType::from_oid(&oid), value);
        }
        let validity = certificate.validity();
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.not_before = validity.not_before.to_datetime();
        params.not_after = validity.not_after.to_datetime();
        let raw_key = certificate.public_key().raw.to_vec();
        Ok(Self {
            pem: normal_pem(&der),
            params,
            key: SubjectPublicKeyInfo::from_der(&raw_key)?,
            raw_key,
            not_after: validity.not_after.timestamp(),
        })
    }
}

/// That who trusts this root accepts this chain (first the certificate, then what links it) as a node's, now.
pub(crate) fn check_chain(root_pem: &str, chain_pem: &str) -> Result<()> {
    let mut roots = RootCertStore::empty();
    for root in ders(root_pem)? {
        roots.add(root).map_err(malformed)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(malformed)?;
    let chain = ders(chain_pem)?;
    let (leaf, intermediates) = chain.split_first().ok_or_else(|| malformed("no certificate in the PEM"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    verifier.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(now)).map(drop).map_err(malformed)
}
