//! Macvlan networks: containers with an address of their own on the wire of one of the host's interfaces, the parent. The host
//! itself does not reach them, nor they it: that is how macvlan is. Refusals are those of libnetwork's driver.

use std::io;
use std::os::fd::AsFd;

use rtnetlink::packet_route::link::MacVlanMode;
use skep_model::NetworkId;
use skep_model::sandbox::LocalNetworkSpec;

use super::driver::{self, Port};
use super::{Stored, option};
use crate::error::{Context, NetError, Result};
use crate::link::{Namespace, Veth, VethEnd};

pub(super) fn mode(spec: &LocalNetworkSpec) -> Result<MacVlanMode> {
    match spec.options.get(option::MACVLAN_MODE).map_or("", String::as_str) {
        "" | "bridge" => Ok(MacVlanMode::Bridge),
        "private" => Ok(MacVlanMode::Private),
        "vepa" => Ok(MacVlanMode::Vepa),
        "passthru" => Ok(MacVlanMode::Passthrough),
        other => Err(NetError::Driver(format!(
            "requested macvlan mode '{other}' is not valid, 'bridge' mode is the macvlan driver default"
        ))),
    }
}

/// Of a network that is on no wire: a name no interface of the host's has.
pub(super) fn own_parent(id: &NetworkId) -> String {
    format!("dm-{}", id.short())
}

/// Sees to it that the parent is there; true if it had to be made.
pub(crate) fn ensure_parent(host: &Namespace, stored: &Stored) -> Result<bool> {
    let (links, parent) = (host.links(), stored.link.as_str());
    let failed = || format!("look for the interface {parent}");
    if links.find(parent).context(failed)?.is_some() {
        return Ok(false);
    }
    if parent == own_parent(&stored.network.id) {
        make_nowhere(host, &stored.network.id, parent).context(|| format!("make the interface {parent}"))?;
        return Ok(true);
    }
    let refuse = |text: String| Err(NetError::Driver(text));
    let Some((base, tag)) = parent.split_once('.') else {
        return refuse(format!("invalid subinterface vlan name {parent}, example formatting is eth0.10"));
    };
    let Ok(vlan) = tag.parse::<u16>() else {
        return refuse(format!("unable to parse a valid vlan id from: {tag} (ex. eth0.10 for vlan 10)"));
    };
    let Some(base_link) = links.find(base).context(failed)? else {
        return refuse(format!("-o parent interface does was not found on the host: {base}"));
    };
    if !(1..=4094).contains(&vlan) {
        return refuse(format!("vlan id must be between 1-4094, received: {vlan}"));
    }
    match links.add_vlan(parent, base_link.index, vlan) {
        Ok(()) => Ok(true),
        Err(error) => refuse(format!("failed to create {parent} vlan link: {error}")),
    }
}

/// An interface that is on no wire. Without dummy devices in the kernel it is one whose other end nobody has anything to do
/// with; a bridge without ports would not do, since it passes nothing on.
fn make_nowhere(host: &Namespace, id: &NetworkId, name: &str) -> io::Result<()> {
    let links = host.links();
    if links.add_dummy(name).is_ok() {
        return Ok(());
    }
    let other = format!("dn-{}", id.short());
    let end = |name| VethEnd { name, namespace: None, mac: None, master: None, up: false };
    links.add_veth(&Veth { near: end(name), far: end(&other), mtu: None })?;
    for name in [name, &other] {
        host.write_sysctls(&[(&format!("ipv6/conf/{name}/disable_ipv6"), "1")])?;
        links.set_up(links.index(name)?)?;
    }
    Ok(())
}

/// Gives a container its interface.
pub(crate) fn connect(host: &Namespace, stored: &Stored, inside: &Namespace, port: &Port<'_>) -> io::Result<()> {
    let parent = host.links().find(&stored.link)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("the parent interface {} is gone", stored.link))
    })?;
    if !parent.up && stored.owns_link {
        host.links().set_up(parent.index)?;
    }
    let mode = mode(&stored.network.spec).map_err(io::Error::other)?;
    host.links().add_macvlan(port.name, parent.index, mode, port.mac, inside.fd().as_fd())?;
    driver::configure(inside, port)
}
