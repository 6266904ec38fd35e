//! TLS configurations from a member's certificate, replaceable while connections live.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::sync::watch;

use crate::ca::{Identity, Issuer, issuer_of};
use crate::error::{NodeError, Result};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn tls_error(error: impl std::fmt::Display) -> NodeError {
    NodeError::Certificate(error.to_string())
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<std::result::Result<_, _>>().map_err(tls_error)
}

fn roots(pem: &str) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem)? {
        store.add(certificate).map_err(tls_error)?;
    }
    Ok(store)
}

/// One generation of a member's certificate, ready for use on both sides of a connection.
pub(crate) struct TlsMaterial {
    pub(crate) identity: Identity,
    pub(crate) root_pem: String,
    pub(crate) issuer: Issuer,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl TlsMaterial {
    pub(crate) fn new(root_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Self> {
        let chain = certificates(cert_pem)?;
        let leaf = chain.first().ok_or_else(|| NodeError::Certificate("the certificate file is empty".into()))?;
        let identity = Identity::from_der(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(tls_error)?;
        let trusted = Arc::new(roots(root_pem)?);
        // Without a certificate one may connect, but only to ask for one: every other call wants a `Peer` with an identity.
        let verifier = WebPkiClientVerifier::builder_with_provider(trusted.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(tls_error)?;
        let verifier = Arc::new(LateMembers(verifier));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(tls_error)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_root_certificates(trusted)
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(tls_error)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        // What follows a certificate is its issuer, signed by an older root; alone, it is of the root itself.
        let issuer = match cert_pem.match_indices(BEGIN).nth(1) {
            Some((at, _)) => issuer_of(&cert_pem[at..])?,
            None => issuer_of(root_pem)?,
        };
        let (server, client) = (Arc::new(server), Arc::new(client));
        Ok(Self { identity, root_pem: root_pem.to_owned(), issuer, chain, key, server, client })
    }

    /// To an HTTPS server with a certificate of one of these roots, as this member.
    pub(crate) fn https_client(&self, roots_pem: &str) -> Result<Arc<ClientConfig>> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls_error)?
            .with_root_certificates(roots(roots_pem)?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls_error)?;
        Ok(Arc::new(config))
    }
}

/// The certificate in use: a renewed one serves the next connection.
#[derive(Clone)]
pub(crate) struct LiveTls(Arc<watch::Sender<Arc<TlsMaterial>>>);

impl LiveTls {
    pub(crate) fn new(material: TlsMaterial) -> Self {
        Self(Arc::new(watch::channel(Arc::new(material)).0))
    }

    pub(crate) fn current(&self) -> Arc<TlsMaterial> {
        self.0.borrow().clone()
    }

    pub(crate) fn replace(&self, material: TlsMaterial) {
        self.0.send_replace(Arc::new(material));
    }

    /// Told of every replacement: connections made before still show the old certificate.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<TlsMaterial>> {
        self.0.subscribe()
    }
}

/// A client that knows the root and has no certificate yet.
pub(super) fn joiner_config(root_pem: &str) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_root_certificates(roots(root_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts whoever answers: only to fetch the root, which is compared with the token's digest before use.
pub(super) fn stranger_config() -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A member whose certificate has run out may connect, to ask for a new one: every other call looks at the date.
#[derive(Debug)]
struct LateMembers(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for LateMembers {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) =
            &verified
        else {
            return verified;
        };
        // As it was in its last second: chain and use must have been right.
        let last = Identity::from_der(end_entity).ok().and_then(|i| u64::try_from(i.not_after).ok());
        match last {
            Some(last) => {
                let last = UnixTime::since_unix_epoch(Duration::from_secs(last));
                self.0.verify_client_cert(end_entity, intermediates, last)
            }
            None => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
