//! The container resolver: 127.0.0.11 of every sandbox on a network with names.
//!
//! ```text
//! container: query to 127.0.0.11:53 --dnat--> socket bound inside the namespace, served here
//!     answer(zones, question) -> ours: reply | not ours: forward from the host's namespace, reply as it came
//! ```
//!
//! Decides sockets, wire format and forwarding. Must not know which names there are: [`Names`] says. The sockets are not
//! on port 53 itself, which a container's own server may want; they pin the namespace, so [`Resolver::stop`] must come
//! before it can go.

mod forward;
mod rules;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::net::IpAddr;

use skep_model::dns::{Answer, Question};

pub(crate) use forward::Forwarder;
pub(crate) use server::{Resolver, Sockets};

/// Where the resolver listens, as containers see it.
pub(crate) const RESOLVER_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 11);
/// Seconds a client may keep an answer of ours. Swarm says 600, and its users meet tasks that are long gone.
pub(crate) const TTL_SECONDS: u32 = 3;

/// What one container's resolver answers from.
pub(crate) trait Names: Send + Sync + 'static {
    fn answer(&self, question: &Question) -> Answer;
    /// Whom to ask about names that are not ours.
    fn upstreams(&self) -> Vec<IpAddr>;
}
