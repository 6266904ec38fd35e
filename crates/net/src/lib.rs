//! The network side of one host: namespaces of containers, bridge networks, published ports, the container resolver, and
//! the swarm's overlays and mesh.
//!
//! ```text
//!            sandbox::setup                                   dataplane::apply(plan)
//!   request ----------------> namespace, eth0, eth1, ...     <---------------------- agent
//!                  |      \                \
//!               bridge   publish         dns (127.0.0.11)
//!                  \________|________________|___________ link (rtnetlink), nft (nf_tables)
//! ```
//!
//! Decides how networks look in the kernel of this host. Must not know what runs in a container, what a service is, nor
//! why a plan is what it is. No program is ever run: no `ip`, `iptables` or `nft`.
//!
//! Read first: [`Net`], then `sandbox`, `bridge` and [`dataplane`].

mod config;
mod datagrams;
mod error;
mod guard;
mod host;
mod net;
mod sys;

mod bridge;
mod dns;
mod probe;
mod publish;
mod sandbox;
mod sorted;

pub mod balance;
pub mod conntrack;
pub mod dataplane;
pub mod ingress;
pub mod overlay;
mod tunnel;

pub mod link;
pub mod nft;

pub use config::{AddressPool, AnswerFn, NetConfig};
pub use error::{ErrorKind, NetError, Result};
pub use net::Net;
