//! The kernel's links, addresses and routes, namespace by namespace, over rtnetlink; no `ip` process is ever run.
//!
//! Decides how a wish ("a veth pair, this end there") becomes netlink messages. Must not know what a network, a container
//! or a service is. Everything here blocks for as long as the kernel takes (tens of microseconds, longer while somebody
//! else holds the kernel's rtnl lock): call it from a blocking thread, not from a tokio worker.
//!
//! Read first: [`Namespace`], then [`Links`].

mod address;
mod links;
mod namespace;
mod neighbour;
mod socket;

#[cfg(test)]
mod tests;

pub use address::Route;
pub use links::{LinkInfo, Links, Veth, VethEnd, Vxlan};
pub use namespace::Namespace;
pub use neighbour::Entry;
pub use socket::{Request, RouteSocket};
