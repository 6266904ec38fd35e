//! Addresses, routes and policy rules.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

use super::{Links, Request};

/// A unicast IPv4 route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
    pub gateway: Option<Ipv4Addr>,
    /// Index of the link; not needed with a gateway on a known subnet.
    pub link: Option<u32>,
    /// Routing table; `None` is main.
    pub table: Option<u32>,
}

impl Route {
    pub fn default_via(gateway: Ipv4Addr, link: u32) -> Self {
        Self { destination: Ipv4Net::default(), gateway: Some(gateway), link: Some(link), table: None }
    }

    fn message(&self) -> RouteMessage {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.destination.addr(), self.destination.prefix_len());
        if let Some(gateway) = self.gateway {
            route = route.gateway(gateway);
        } else {
            route = route.scope(RouteScope::Link);
        }
        if let Some(link) = self.link {
            route = route.output_interface(link);
        }
        if let Some(table) = self.table {
            route = route.table_id(table);
        }
        route.build()
    }
}

impl Links {
    /// Idempotent.
    pub fn add_address(&self, link: u32, address: Ipv4Net) -> io::Result<()> {
        let message = address_message(link, address);
        self.socket.send(Request::replace(RouteNetlinkMessage::NewAddress(message)))
    }

    /// Succeeds when it is not there.
    pub fn delete_address(&self, link: u32, address: Ipv4Net) -> io::Result<()> {
        let message = address_message(link, address);
        unless(
            self.socket.send(Request::change(RouteNetlinkMessage::DelAddress(message))),
            &[libc::EADDRNOTAVAIL, libc::ENODEV],
        )
    }

    /// IPv4 addresses of all links, with the link's index.
    pub fn addresses(&self) -> io::Result<Vec<(u32, Ipv4Net)>> {
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet;
        let found = self.socket.dump(RouteNetlinkMessage::GetAddress(query))?;
        Ok(found
            .into_iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else { return None };
                let local = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                })?;
                Some((message.header.index, Ipv4Net::new(local, message.header.prefix_len).ok()?))
            })
            .collect())
    }

    /// Idempotent. Usable at once: who has which address is decided elsewhere, and nobody need be asked first.
    pub fn add_address6(&self, link: u32, address: Ipv6Net) -> io::Result<()> {
        let message =
            AddressMessageBuilder::<Ipv6Addr>::new().index(link).address(address.addr(), address.prefix_len());
        let mut message = message.build();
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.socket.send(Request::replace(RouteNetlinkMessage::NewAddress(message)))
    }

    /// IPv6 addresses of all links, with the link's index; those that the kernel gave a link by itself too.
    pub fn addresses6(&self) -> io::Result<Vec<(u32, Ipv6Net)>> {
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet6;
        let found = self.socket.dump(RouteNetlinkMessage::GetAddress(query))?;
        Ok(found
            .into_iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else { return None };
                let own = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(IpAddr::V6(address)) => Some(*address),
                    _ => None,
                })?;
                Some((message.header.index, Ipv6Net::new(own, message.header.prefix_len).ok()?))
            })
            .collect())
    }

    /// The way for IPv6 packets that have no other, in place of an earlier one; `None` takes it away, if there is one.
    pub fn set_default_route6(&self, via: Option<(Ipv6Addr, u32)>) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new();
        let any = route.clone().build();
        unless(self.socket.send(Request::change(RouteNetlinkMessage::DelRoute(any))), &[libc::ESRCH, libc::ENODEV])?;
        let Some((gateway, link)) = via else { return Ok(()) };
        let route = route.gateway(gateway).output_interface(link).build();
        self.socket.send(Request::replace(RouteNetlinkMessage::NewRoute(route)))
    }

    /// Idempotent; takes the place of a route to the same destination in the same table.
    pub fn add_route(&self, route: &Route) -> io::Result<()> {
        self.socket.send(Request::replace(RouteNetlinkMessage::NewRoute(route.message())))
    }

    /// Succeeds when it is not there.
    pub fn delete_route(&self, route: &Route) -> io::Result<()> {
        unless(
            self.socket.send(Request::change(RouteNetlinkMessage::DelRoute(route.message()))),
            &[libc::ESRCH, libc::ENODEV],
        )
    }

    /// Unicast IPv4 routes of the main table.
    pub fn routes(&self) -> io::Result<Vec<Route>> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let found = self.socket.dump(RouteNetlinkMessage::GetRoute(query))?;
        Ok(found
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) => route_of(&message),
                _ => None,
            })
            .collect())
    }

    /// Packets with `mark` under `mask` look into `table` first. Idempotent.
    pub fn add_mark_rule(&self, mark: u32, mask: u32, table: u32, priority: u32) -> io::Result<()> {
        let message = mark_rule(mark, mask, table, priority);
        unless(self.socket.send(Request::create(RouteNetlinkMessage::NewRule(message))), &[libc::EEXIST])
    }

    /// Succeeds when it is not there.
    pub fn delete_mark_rule(&self, mark: u32, mask: u32, table: u32, priority: u32) -> io::Result<()> {
        let message = mark_rule(mark, mask, table, priority);
        unless(self.socket.send(Request::change(RouteNetlinkMessage::DelRule(message))), &[libc::ENOENT])
    }
}

fn unless(result: io::Result<()>, fine: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|code| fine.contains(&code)) => Ok(()),
        other => other,
    }
}

fn address_message(link: u32, address: Ipv4Net) -> AddressMessage {
    AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(address.addr(), address.prefix_len()).build()
}

fn mark_rule(mark: u32, mask: u32, table: u32, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(mask),
        RuleAttribute::Table(table),
    ];
    message
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast || message.header.address_family != AddressFamily::Inet {
        return None;
    }
    let mut route = Route { destination: Ipv4Net::default(), gateway: None, link: None, table: None };
    let mut address = Ipv4Addr::UNSPECIFIED;
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(found)) => address = *found,
            RouteAttribute::Gateway(RouteAddress::Inet(found)) => route.gateway = Some(*found),
            RouteAttribute::Oif(found) => route.link = Some(*found),
            RouteAttribute::Table(found) => table = *found,
            _ => {}
        }
    }
    route.destination = Ipv4Net::new(address, message.header.destination_prefix_length).ok()?;
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(route)
}
