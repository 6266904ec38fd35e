//! A namespace's interface on an overlay: a veth pair from the overlay's bridge.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use skep_model::network::mac_of;

use super::Overlay;
use crate::bridge::driver::enable_ipv6;
use crate::link::{Links, Namespace, Request, Veth, VethEnd};

pub(super) const PORT_PREFIX: &str = "ep-";

/// What is to be connected.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// At most 12 characters that name it among the endpoints of the overlay on this host.
    pub key: &'a str,
    pub namespace: &'a Namespace,
    pub ifname: &'a str,
    pub address: Ipv4Addr,
}

impl Endpoint<'_> {
    fn port(&self) -> String {
        port_name(self.key)
    }
}

fn port_name(key: &str) -> String {
    format!("{PORT_PREFIX}{key:.12}")
}

impl Overlay {
    /// Connects a namespace, or finds it connected. The count is of changes made.
    pub fn attach(&self, endpoint: &Endpoint<'_>) -> io::Result<usize> {
        let port = endpoint.port();
        let mac = mac_of(endpoint.address);
        let links = self.namespace.links();
        let inside = endpoint.namespace.links();
        let address = self.with_prefix(endpoint.address);
        if let (Some(near), Some(far)) = (links.find(&port)?, inside.find(endpoint.ifname)?) {
            let fits =
                near.master == Some(self.bridge) && near.peer == Some(far.index) && far.mac == Some(mac) && far.up;
            let has_six = |six| Ok::<_, io::Error>(inside.addresses6()?.contains(&(far.index, six)));
            let fits6 = self.six(endpoint.address).map_or(Ok(true), has_six)?;
            if fits && fits6 && inside.addresses()?.contains(&(far.index, address)) {
                return Ok(0);
            }
        }
        links.delete(&port)?;
        let veth = Veth {
            near: VethEnd { name: &port, namespace: None, mac: None, master: Some(self.bridge), up: true },
            far: VethEnd {
                name: endpoint.ifname,
                namespace: Some(endpoint.namespace.fd().as_fd()),
                mac: Some(mac),
                master: None,
                // The kernel refuses an end that is up before it has its other end.
                up: false,
            },
            mtu: Some(self.mtu),
        };
        add_veth(links, &veth, endpoint.address)?;
        let undo = |error| {
            let _ = links.delete(&port);
            error
        };
        self.finish(&port, mac, endpoint).map_err(undo)?;
        Ok(4)
    }

    fn finish(&self, port: &str, mac: [u8; 6], endpoint: &Endpoint<'_>) -> io::Result<()> {
        fix_forwarding(self.namespace.links(), port, mac)?;
        let inside = endpoint.namespace.links();
        let index = inside.index(endpoint.ifname)?;
        inside.add_address(index, self.with_prefix(endpoint.address))?;
        let six = self.six(endpoint.address);
        if six.is_some() {
            enable_ipv6(endpoint.namespace, endpoint.ifname)?;
        }
        inside.set_up(index)?;
        if let Some(six) = six {
            inside.add_address6(index, six)?;
        }
        // With the question the kernel tells the bridge of the port's carrier, which it would otherwise do in its own time,
        // dropping the container's first frames until then.
        self.namespace.links().index(port).map(|_| ())
    }

    /// Whether somebody of this name is connected.
    pub(crate) fn holds(&self, key: &str) -> bool {
        matches!(self.namespace.links().find(&port_name(key)), Ok(Some(_)))
    }

    /// Takes the interface away; false if there was none.
    pub fn detach(&self, key: &str) -> io::Result<bool> {
        self.namespace.links().delete(&port_name(key))
    }
}

/// With an index that no interface of a container has, see [`Links::add_veth_with_index`]. Two endpoints of one address, of
/// which one is about to go, get different ones.
fn add_veth(links: &Links, veth: &Veth<'_>, address: Ipv4Addr) -> io::Result<()> {
    const FIRST: u32 = 0x0100_0000;
    let index = FIRST | (u32::from(address) & (FIRST - 1));
    match links.add_veth_with_index(veth, index) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EBUSY)) => {
            links.add_veth_with_index(veth, index | FIRST << 1)
        }
        other => other,
    }
}

/// Tells the bridge where the MAC is. Otherwise, after a task moved here from another host, the bridge would send to the
/// VXLAN link what it learned there, until the new task speaks first.
fn fix_forwarding(links: &Links, port: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = links.index(port)?;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    links.socket().send(Request::replace(RouteNetlinkMessage::NewNeighbour(message)))
}
