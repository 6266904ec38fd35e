//! Permanent neighbour and forwarding entries, many at a time.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Links, Request};

/// A fixed entry on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// `ip neigh`: this address has this MAC.
    Neighbour { link: u32, address: IpAddr, mac: [u8; 6] },
    /// `bridge fdb … self`: a VXLAN link sends frames for this MAC to that host.
    Forward { link: u32, mac: [u8; 6], vtep: Ipv4Addr },
}

impl Entry {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.state = NeighbourState::Permanent;
        match *self {
            Self::Neighbour { link, address, mac } => {
                let (family, destination) = match address {
                    IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
                    IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
                };
                message.header.family = family;
                message.header.ifindex = link;
                message.attributes = vec![
                    NeighbourAttribute::Destination(destination),
                    NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
                ];
            }
            Self::Forward { link, mac, vtep } => {
                message.header.family = AddressFamily::Bridge;
                message.header.ifindex = link;
                message.header.flags = NeighbourFlags::Own;
                message.attributes = vec![
                    NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(vtep)),
                ];
            }
        }
        message
    }
}

impl Links {
    /// Sets every entry, replacing what its key had. One answer for each.
    pub fn set_entries(&self, entries: &[Entry]) -> io::Result<Vec<io::Result<()>>> {
        let requests: Vec<_> =
            entries.iter().map(|entry| Request::replace(RouteNetlinkMessage::NewNeighbour(entry.message()))).collect();
        self.socket.send_all(&requests)
    }

    /// Deletes every entry. One answer for each; one that was not there counts as deleted.
    pub fn delete_entries(&self, entries: &[Entry]) -> io::Result<Vec<io::Result<()>>> {
        let requests: Vec<_> =
            entries.iter().map(|entry| Request::change(RouteNetlinkMessage::DelNeighbour(entry.message()))).collect();
        let mut answers = self.socket.send_all(&requests)?;
        for answer in &mut answers {
            if matches!(answer, Err(error) if error.kind() == io::ErrorKind::NotFound) {
                *answer = Ok(());
            }
        }
        Ok(answers)
    }

    /// Tells the bridge of `port` that this MAC is behind it, before the first frame says so: an address that was another
    /// container's a moment ago is not sent to where that one was.
    pub fn learn(&self, port: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port;
        // Static: a port without carrier, as this one may still be for a moment, learns nothing else. It moves all the same
        // when a frame comes from elsewhere, and goes with the port.
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        self.socket.send(Request::replace(RouteNetlinkMessage::NewNeighbour(message)))
    }

    /// The permanent entries of a link, of both kinds.
    pub fn entries(&self, link: u32) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let mut query = NeighbourMessage::default();
            query.header.family = family;
            for message in self.socket.dump(RouteNetlinkMessage::GetNeighbour(query))? {
                if let RouteNetlinkMessage::NewNeighbour(message) = message
                    && message.header.ifindex == link
                    && message.header.state == NeighbourState::Permanent
                {
                    found.extend(entry_of(&message));
                }
            }
        }
        Ok(found)
    }
}

fn entry_of(message: &NeighbourMessage) -> Option<Entry> {
    let mut mac = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(found) => mac = <[u8; 6]>::try_from(found.as_slice()).ok(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(IpAddr::V4(*found)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(IpAddr::V6(*found)),
            // Of a forwarding entry, whose family does not say what its destination is.
            NeighbourAttribute::Destination(NeighbourAddress::Other(found)) => {
                address = <[u8; 4]>::try_from(found.as_slice()).ok().map(IpAddr::from);
            }
            _ => {}
        }
    }
    let (link, mac, address) = (message.header.ifindex, mac?, address?);
    match (message.header.family, address) {
        (AddressFamily::Bridge, IpAddr::V4(vtep)) => Some(Entry::Forward { link, mac, vtep }),
        (AddressFamily::Bridge, IpAddr::V6(_)) => None,
        _ => Some(Entry::Neighbour { link, address, mac }),
    }
}
