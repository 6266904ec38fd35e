//! Bridges and their ports in the kernel. Blocks; every step may be repeated.

use std::io;
use std::os::fd::AsFd;

use ipnet::{Ipv4Net, Ipv6Net};
use skep_model::network::mac_of;

use super::Stored;
use crate::link::{Namespace, Route, Veth, VethEnd};

/// Makes the bridge of a network, or puts right the one that is there. True if there was none.
pub(crate) fn ensure_bridge(host: &Namespace, stored: &Stored) -> io::Result<bool> {
    let Some(gateway) = stored.gateway_net() else { return Ok(false) };
    let links = host.links();
    let (index, made) = match links.find(&stored.link)? {
        Some(link) if link.kind == "bridge" => {
            if !link.up {
                links.set_up(link.index)?;
            }
            (link.index, false)
        }
        Some(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a link of that name is not a bridge")),
        None => (links.add_bridge(&stored.link, mac_of(gateway.addr()), stored.mtu())?, true),
    };
    let configured: Vec<Ipv4Net> =
        links.addresses()?.into_iter().filter(|(link, _)| *link == index).map(|(_, address)| address).collect();
    if !stored.inhibits_ipv4() && !configured.contains(&gateway) {
        links.add_address(index, gateway)?;
    }
    let conf = |key: &str| format!("ipv4/conf/{}/{key}", stored.link);
    // 127.0.0.1 of the host reaches published ports: the packet is sent to the container and must pass this bridge. Rule
    // chain `raw` drops such packets that a container made up.
    host.write_sysctls(&[("ipv4/ip_forward", "1"), (&conf("route_localnet"), "1")])?;
    let conf6 = |key: &str| format!("ipv6/conf/{}/{key}", stored.link);
    let Some(gateway) = stored.network.gateway6 else {
        host.write_sysctls(&[(&conf6("disable_ipv6"), "1")])?;
        return Ok(made);
    };
    enable_ipv6(host, &stored.link)?;
    if !links.addresses6()?.contains(&(index, gateway)) {
        links.add_address6(index, gateway)?;
    }
    if !stored.network.spec.internal {
        host.run(forward_ipv6)??;
    }
    Ok(made)
}

/// Lets the host pass IPv6 packets on. A host that does so no longer learns its own routes from routers, unless told to on
/// that link: one that did goes on doing so.
fn forward_ipv6() -> io::Result<()> {
    let conf = std::path::Path::new("/proc/sys/net/ipv6/conf");
    let all = conf.join("all/forwarding");
    if std::fs::read_to_string(&all)?.trim() == "1" {
        return Ok(());
    }
    for link in std::fs::read_dir(conf)?.flatten() {
        let accepts = link.path().join("accept_ra");
        if std::fs::read_to_string(&accepts).is_ok_and(|value| value.trim() == "1") {
            std::fs::write(&accepts, "2")?;
        }
    }
    std::fs::write(conf.join("default/forwarding"), "1")?;
    std::fs::write(&all, "1")
}

pub(crate) fn remove_bridge(host: &Namespace, stored: &Stored) -> io::Result<()> {
    if stored.owns_link {
        host.links().delete(&stored.link)?;
    }
    Ok(())
}

/// A container's leg on a bridge.
pub(crate) struct Port<'a> {
    /// Name of the host's end.
    pub(crate) host_end: &'a str,
    /// Name in the container.
    pub(crate) name: &'a str,
    pub(crate) address: Ipv4Net,
    pub(crate) address6: Option<Ipv6Net>,
    pub(crate) mac: [u8; 6],
}

pub(crate) fn connect(host: &Namespace, stored: &Stored, inside: &Namespace, port: &Port<'_>) -> io::Result<()> {
    let bridge = host.links().index(&stored.link)?;
    host.links().add_veth(&Veth {
        near: VethEnd { name: port.host_end, namespace: None, mac: None, master: Some(bridge), up: true },
        far: VethEnd {
            name: port.name,
            namespace: Some(inside.fd().as_fd()),
            mac: Some(port.mac),
            master: None,
            up: false,
        },
        mtu: stored.mtu(),
    })?;
    configure(inside, port)?;
    // Asked for only now: with the question the kernel sees to it that the bridge knows of the carrier, which it would
    // otherwise be told in its own time, and drop the container's first frames until then.
    let near = host.links().index(port.host_end)?;
    prepare_port(host, stored, near, port.mac)
}

/// Gives the container's end its addresses.
pub(super) fn configure(inside: &Namespace, port: &Port<'_>) -> io::Result<()> {
    let index = inside.links().index(port.name)?;
    if port.address6.is_some() {
        enable_ipv6(inside, port.name)?;
    }
    inside.links().set_up(index)?;
    inside.links().add_address(index, port.address)?;
    match port.address6 {
        Some(address) => inside.links().add_address6(index, address),
        None => Ok(()),
    }
}

/// On a bridge, or an interface in a container's namespace, where the default is to have none.
pub(crate) fn enable_ipv6(namespace: &Namespace, link: &str) -> io::Result<()> {
    let conf = |key: &str| format!("ipv6/conf/{link}/{key}");
    namespace.write_sysctls(&[
        // A container must not tell the host, or another one, where to send its packets.
        (&conf("accept_ra"), "0"),
        // While the kernel asks whether its link-local address is taken, for a second, it finds no neighbour.
        (&conf("accept_dad"), "0"),
        (&conf("disable_ipv6"), "0"),
    ])
}

fn prepare_port(host: &Namespace, stored: &Stored, near: u32, mac: [u8; 6]) -> io::Result<()> {
    // Hairpin: where the host passes bridged frames through its firewall (bridge-nf-call-iptables, the kernel's default), a
    // container that reaches itself by a published port is sent back out of the port it came in by.
    host.links().set_bridge_port(near, true, !stored.icc())?;
    host.links().learn(near, mac)
}

/// Puts a container's port back on its bridge, if it is not on it. False where there is nothing to do, or no such port.
pub(crate) fn ensure_port(host: &Namespace, stored: &Stored, host_end: &str, mac: [u8; 6]) -> io::Result<bool> {
    let (links, bridge) = (host.links(), host.links().index(&stored.link)?);
    let Some(near) = links.find(host_end)?.filter(|link| link.master != Some(bridge) || !link.up) else {
        return Ok(false);
    };
    links.set_master(near.index, bridge)?;
    links.set_up(near.index)?;
    prepare_port(host, stored, near.index, mac)?;
    Ok(true)
}

pub(crate) fn disconnect(host: &Namespace, host_end: &str) -> io::Result<()> {
    host.links().delete(host_end).map(|_| ())
}

/// Sends what has no other way through this interface, replacing an earlier default route.
pub(crate) fn set_default_route(inside: &Namespace, name: &str, gateway: std::net::Ipv4Addr) -> io::Result<()> {
    let index = inside.links().index(name)?;
    inside.links().add_route(&Route::default_via(gateway, index))
}

/// The same for IPv6; `None` is no way at all.
pub(crate) fn set_default_route6(inside: &Namespace, via: Option<(&str, std::net::Ipv6Addr)>) -> io::Result<()> {
    let via = via.map(|(name, gateway)| Ok::<_, io::Error>((gateway, inside.links().index(name)?))).transpose()?;
    inside.links().set_default_route6(via)
}
