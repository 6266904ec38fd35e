//! Which URLs stand for a registry, and which of them may be spoken to without TLS.

use std::net::IpAddr;

use super::Registries;
use crate::image::{ImageError, Result};

/// Where Docker Hub's API really is.
const HUB: &str = "registry-1.docker.io";

/// One base URL to try, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) base: String,
    /// Certificates are not checked.
    pub(super) insecure: bool,
    pub(super) mirror: bool,
}

/// An entry of `--insecure-registry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Insecure {
    Host(String),
    Network { address: IpAddr, prefix: u8 },
}

impl Insecure {
    pub(super) fn parse(text: &str) -> Result<Self> {
        if text.contains("://") {
            return Err(ImageError::Invalid(format!("insecure registry {text} should not contain '://'")));
        }
        let network = text.split_once('/').and_then(|(address, prefix)| {
            let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse().ok()?);
            (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self::Network { address, prefix })
        });
        match network {
            Some(network) => Ok(network),
            None if text.contains('/') || text.is_empty() => {
                Err(ImageError::Invalid(format!("invalid insecure registry {text:?}")))
            }
            None => Ok(Self::Host(text.to_ascii_lowercase())),
        }
    }

    fn covers(&self, domain: &str) -> bool {
        match self {
            Self::Host(host) => host == domain,
            Self::Network { address, prefix } => {
                host_of(domain).parse::<IpAddr>().is_ok_and(|ip| in_network(ip, *address, *prefix))
            }
        }
    }
}

fn in_network(ip: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let (ip, network, width) = match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => (u128::from(ip.to_bits()), u128::from(net.to_bits()), 32),
        (IpAddr::V6(ip), IpAddr::V6(net)) => (ip.to_bits(), net.to_bits(), 128),
        _ => return false,
    };
    let shift = width - u32::from(prefix);
    shift == 128 || ip >> shift == network >> shift
}

/// The host without port and brackets.
fn host_of(domain: &str) -> &str {
    if let Some(rest) = domain.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    domain.rsplit_once(':').map_or(domain, |(host, _)| host)
}

fn is_loopback(domain: &str) -> bool {
    let host = host_of(domain);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Registries {
    pub(super) fn is_insecure(&self, domain: &str) -> bool {
        is_loopback(domain) || self.insecure.iter().any(|entry| entry.covers(&domain.to_ascii_lowercase()))
    }

    /// In the order to try. `mirrors` only make sense for reading.
    pub(super) fn endpoints(&self, domain: &str, mirrors: bool) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        let hub = domain == "docker.io";
        if hub && mirrors {
            for mirror in &self.mirrors {
                let host = mirror.split("://").nth(1).unwrap_or(mirror).split('/').next().unwrap_or_default();
                let insecure = self.is_insecure(host);
                let base = if mirror.contains("://") { mirror.clone() } else { format!("https://{mirror}") };
                endpoints.push(Endpoint { base, insecure, mirror: true });
            }
        }
        let host = if hub { HUB } else { domain };
        let insecure = self.is_insecure(domain);
        endpoints.push(Endpoint { base: format!("https://{host}"), insecure, mirror: false });
        if insecure {
            endpoints.push(Endpoint { base: format!("http://{host}"), insecure, mirror: false });
        }
        endpoints
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageStoreConfig, no_events};

    #[test]
    fn loopback_and_named_registries_fall_back_to_http() {
        let mut config = ImageStoreConfig::new("/nowhere", no_events());
        config.insecure_registries = vec!["reg.local:5000".into(), "10.9.0.0/16".into(), "fd00::/8".into()];
        config.registry_mirrors = vec!["http://127.0.0.1:6000/".into()];
        let registries = Registries::new(&config).unwrap();
        for insecure in ["localhost:5000", "127.1.2.3", "[::1]:5000", "reg.local:5000", "10.9.1.1:80", "[fd00::1]:5"] {
            assert!(registries.is_insecure(insecure), "{insecure}");
        }
        for secure in ["docker.io", "reg.local", "10.10.0.1:5000", "localhost.example.com"] {
            assert!(!registries.is_insecure(secure), "{secure}");
        }
        let bases: Vec<String> = registries.endpoints("docker.io", true).into_iter().map(|e| e.base).collect();
        assert_eq!(bases, ["http://127.0.0.1:6000", "https://registry-1.docker.io"]);
        let bases: Vec<String> = registries.endpoints("localhost:5000", true).into_iter().map(|e| e.base).collect();
        assert_eq!(bases, ["https://localhost:5000", "http://localhost:5000"]);
        for bad in ["http://x", "a/b", "", "10.0.0.0/33"] {
            assert!(Insecure::parse(bad).is_err(), "{bad}");
        }
    }
}
