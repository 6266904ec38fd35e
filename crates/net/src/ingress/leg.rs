//! The host's leg on the ingress overlay.

use std::io;

use crate::link::Namespace;

/// Interface name of the leg in the host's namespace.
pub fn name(tag: &str) -> String {
    format!("ing-{tag}")
}

/// Settings without which nothing gets through the leg.
pub(super) fn prepare(host: &Namespace, leg: &str) -> io::Result<()> {
    let key = |rest: &str| format!("ipv4/conf/{leg}/{rest}");
    host.write_sysctls(&[
        ("ipv4/ip_forward", "1"),
        // Connections from 127.0.0.1 leave here with the leg's address, and their answers come back to 127.0.0.1. Nothing
        // else may come in for it: the rules see to that.
        (&key("route_localnet"), "1"),
        // Loose, which is also what a stricter `all` leaves in force.
        (&key("rp_filter"), "2"),
        (&key("send_redirects"), "0"),
        (&key("accept_redirects"), "0"),
        (&format!("ipv6/conf/{leg}/disable_ipv6"), "1"),
    ])
}
