//! Links: bridges, veth pairs, vxlan; their names, state and owners.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo as Info, LinkMessage, MacVlanMode,
};
use rtnetlink::{LinkBridge, LinkDummy, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVlan, LinkVxlan};

use super::{Request, RouteSocket};

/// Links, addresses, routes, rules and neighbours of one namespace.
pub struct Links {
    pub(super) socket: RouteSocket,
}

/// What is known of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkInfo {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, `vxlan`; empty for a real device.
    pub kind: String,
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    pub up: bool,
    /// Up with a carrier, and known to be so by its bridge: passes packets.
    pub running: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Other end of a veth, as an index in that end's namespace.
    pub peer: Option<u32>,
}

/// One end of a veth pair to be made.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    pub name: &'a str,
    /// The namespace it belongs into; `None` is the one the request is made in.
    pub namespace: Option<BorrowedFd<'a>>,
    pub mac: Option<[u8; 6]>,
    /// Index of a bridge in the end's own namespace. Only for the first end: the kernel ignores it for the second.
    pub master: Option<u32>,
    /// Only for the first end too: a veth cannot go up before it has its other end, and the second is made first.
    pub up: bool,
}

#[derive(Clone, Debug)]
pub struct Veth<'a> {
    pub near: VethEnd<'a>,
    pub far: VethEnd<'a>,
    pub mtu: Option<u32>,
}

/// A VXLAN link without learning, answering ARP from its neighbour table.
#[derive(Clone, Debug)]
pub struct Vxlan<'a> {
    pub name: &'a str,
    pub vni: u32,
    pub port: u16,
    pub local: Option<Ipv4Addr>,
    pub mtu: u32,
    pub proxy: bool,
    /// Where the link goes; its outer socket stays in the namespace of the request.
    pub namespace: Option<BorrowedFd<'a>>,
}

impl Links {
    pub fn new(socket: RouteSocket) -> Self {
        Self { socket }
    }

    /// The socket, for messages that have no method here.
    pub fn socket(&self) -> &RouteSocket {
        &self.socket
    }

    pub fn list(&self) -> io::Result<Vec<LinkInfo>> {
        let found = self.socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(found.into_iter().filter_map(link_info).collect())
    }

    /// Links whose name starts so.
    pub fn list_prefix(&self, prefix: &str) -> io::Result<Vec<LinkInfo>> {
        let mut links = self.list()?;
        links.retain(|link| link.name.starts_with(prefix));
        Ok(links)
    }

    pub fn find(&self, name: &str) -> io::Result<Option<LinkInfo>> {
        let query = LinkUnspec::new_with_name(name).build();
        match self.socket.get(RouteNetlinkMessage::GetLink(query)) {
            Ok(found) => Ok(found.into_iter().find_map(link_info)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The index of a link that must be there.
    pub fn index(&self, name: &str) -> io::Result<u32> {
        match self.find(name)? {
            Some(link) => Ok(link.index),
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    /// Makes a bridge that is up. Without a fixed MAC a bridge takes the lowest of its ports', and changes it with them.
    pub fn add_bridge(&self, name: &str, mac: [u8; 6], mtu: Option<u32>) -> io::Result<u32> {
        let mut link = LinkBridge::new(name).address(mac.to_vec()).up();
        if let Some(mtu) = mtu {
            link = link.mtu(mtu);
        }
        self.create(link.build())?;
        self.index(name)
    }

    /// Makes both ends where they belong and named, with a single message. The far end is down.
    pub fn add_veth(&self, veth: &Veth<'_>) -> io::Result<()> {
        self.add_veth_with_index(veth, 0)
    }

    /// The same, with the near end's index given; 0 lets the kernel choose.
    ///
    /// If both ends happen to have the same number, each in its namespace, the kernel takes the link for one that has no
    /// other end, and tells the bridge up to a second late that it has a carrier (`linkwatch_urgent_event`). Until then
    /// the bridge drops everything.
    pub fn add_veth_with_index(&self, veth: &Veth<'_>, index: u32) -> io::Result<()> {
        let far = VethEnd { up: false, master: None, ..veth.far.clone() };
        let far = veth_end(LinkMessageBuilder::<LinkUnspec>::new(), &far, veth.mtu).build();
        let near = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)));
        let mut message = veth_end(near, &veth.near, veth.mtu).build();
        message.header.index = index;
        self.create(message)
    }

    pub fn add_vxlan(&self, vxlan: &Vxlan<'_>) -> io::Result<()> {
        let mut link =
            LinkVxlan::new(vxlan.name, vxlan.vni).port(vxlan.port).learning(false).proxy(vxlan.proxy).mtu(vxlan.mtu);
        if let Some(local) = vxlan.local {
            link = link.local(local);
        }
        self.create(link.build())?;
        // Made here and moved, rather than made there: the namespace a vxlan link is made in is where its packets leave.
        match vxlan.namespace {
            Some(namespace) => self.move_to(self.index(vxlan.name)?, namespace).inspect_err(|_| {
                let _ = self.delete(vxlan.name);
            }),
            None => Ok(()),
        }
    }

    /// Makes a macvlan link in another namespace than its parent's. It is down.
    pub fn add_macvlan(
        &self,
        name: &str,
        parent: u32,
        mode: MacVlanMode,
        mac: [u8; 6],
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let link = LinkMacVlan::new(name, parent, mode).address(mac.to_vec());
        self.create(link.setns_by_fd(namespace.as_raw_fd()).build())
    }

    /// Makes a link that leads nowhere, up.
    pub fn add_dummy(&self, name: &str) -> io::Result<()> {
        self.create(LinkDummy::new(name).up().build())
    }

    /// Makes the link of a VLAN on another link, up.
    pub fn add_vlan(&self, name: &str, base: u32, vlan: u16) -> io::Result<()> {
        self.create(LinkVlan::new(name, base, vlan).up().build())
    }

    /// Deletes by name; false if there was none.
    pub fn delete(&self, name: &str) -> io::Result<bool> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.socket.send(Request::change(RouteNetlinkMessage::DelLink(message))) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub fn set_up(&self, index: u32) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(index).up().build())
    }

    pub fn set_down(&self, index: u32) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(index).down().build())
    }

    /// The link must be down.
    pub fn rename(&self, index: u32, name: &str) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(index).name(name).build())
    }

    pub fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(index).mtu(mtu).build())
    }

    pub fn set_mac(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(index).address(mac.to_vec()).build())
    }

    /// Makes it a port of a bridge.
    pub fn set_master(&self, index: u32, bridge: u32) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(index).controller(bridge).build())
    }

    /// Moves the link into another namespace.
    pub fn move_to(&self, index: u32, namespace: BorrowedFd<'_>) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(index).setns_by_fd(namespace.as_raw_fd()).build())
    }

    /// Whether a bridge port may send back out of itself what came in by it, and whether it may talk to other isolated
    /// ports.
    pub fn set_bridge_port(&self, index: u32, hairpin: bool, isolated: bool) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index).set_port_kind(InfoPortKind::Bridge).set_port_data(
            InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(hairpin), InfoBridgePort::Isolated(isolated)]),
        );
        self.change(link.build())
    }

    fn create(&self, message: LinkMessage) -> io::Result<()> {
        self.socket.send(Request::create(RouteNetlinkMessage::NewLink(message)))
    }

    fn change(&self, message: LinkMessage) -> io::Result<()> {
        self.socket.send(Request::change(RouteNetlinkMessage::NewLink(message)))
    }
}

fn veth_end<T>(link: LinkMessageBuilder<T>, end: &VethEnd<'_>, mtu: Option<u32>) -> LinkMessageBuilder<T> {
    let mut link = link.name(end.name);
    if let Some(namespace) = end.namespace {
        link = link.setns_by_fd(namespace.as_raw_fd());
    }
    if let Some(mac) = end.mac {
        link = link.address(mac.to_vec());
    }
    if let Some(mtu) = mtu {
        link = link.mtu(mtu);
    }
    if let Some(master) = end.master {
        link = link.controller(master);
    }
    if end.up { link.up() } else { link }
}

fn link_info(message: RouteNetlinkMessage) -> Option<LinkInfo> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let up = message.header.flags.contains(LinkFlags::Up);
    let running = message.header.flags.contains(LinkFlags::Running);
    let mut link = LinkInfo { index: message.header.index, up, running, ..LinkInfo::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(peer) => link.peer = Some(peer),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let Info::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}
