//! Overlay networks on this host: each a namespace with a bridge and a VXLAN link, and the veth pairs into containers.
//!
//! ```text
//!   host namespace          overlay namespace                       container namespace
//!   udp :4789 <--- vx-1a2b3c4d --- br0 --- ep-0123456789ab <------> eth0  02:42:<address>
//! ```
//!
//! The VXLAN link is made in the host's namespace and moved, so that its outer packets leave from there. It learns nothing
//! and answers ARP and neighbour solicitations itself: every remote endpoint is written into it from the plan, and no broadcast leaves the host. An
//! endpoint's MAC follows from its address, so a task that moves leaves remote ARP caches right.
//!
//! An encrypted overlay has a TAP interface in the VXLAN link's place and never both; see `tunnel`.
//!
//! Decides how one overlay looks in the kernel. Must not know about services or published ports: the balancing rules are
//! made in [`crate::balance`], the mesh in [`crate::ingress`]; [`crate::dataplane`] drives all three.

mod endpoint;
mod members;
mod remote;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::Ipv4Net;
use skep_model::network::{DualStack, OVERLAY_MTU, mac_of};
use skep_model::plan::OverlayPlan;

use crate::link::{LinkInfo, Namespace, Vxlan};
use crate::sorted::{differences, entries};
use crate::tunnel::Tap;

pub use endpoint::Endpoint;
pub use members::MembersOnly;

const BRIDGE: &str = "br0";
const VXLAN_PREFIX: &str = "vx-";
const SEALED: &str = "sealed";
/// IANA's, and Swarm's.
const VXLAN_PORT: u16 = 4789;

/// How VXLAN packets travel between the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    pub vtep: Option<Ipv4Addr>,
    /// 0 is the usual one.
    pub port: u16,
}

impl Underlay {
    pub fn vxlan_port(self) -> u16 {
        if self.port == 0 { VXLAN_PORT } else { self.port }
    }

    /// Where encrypted networks' datagrams go.
    pub fn sealed_port(self) -> u16 {
        self.vxlan_port().saturating_add(1)
    }
}

/// An overlay that is in place.
#[derive(Debug)]
pub struct Overlay {
    path: PathBuf,
    namespace: Namespace,
    subnet: Ipv4Net,
    dual_stack: Option<DualStack>,
    mtu: u32,
    bridge: u32,
    vxlan_name: String,
    vxlan: u32,
    /// Of an encrypted overlay, which has no VXLAN link.
    tap: Option<Arc<Tap>>,
    /// What the VXLAN link has been told, or the tunnel is to be.
    remote: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Of these, the ones to take away.
    stale: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl Overlay {
    /// Makes the overlay, or adopts what an earlier daemon made at `path` as far as it fits. The count is of changes made.
    pub fn ensure(
        host: &Namespace,
        path: &Path,
        tag: &str,
        plan: &OverlayPlan,
        underlay: Underlay,
    ) -> io::Result<(Self, usize)> {
        let mut changes = 0;
        let namespace = match Namespace::open(path) {
            Ok(namespace) => namespace,
            Err(_) => {
                Namespace::delete(path)?;
                changes += 1;
                let namespace = Namespace::create(path)?;
                // The bridge must not pass its frames through anybody's iptables rules; and nothing here speaks IPv6 itself.
                namespace.write_sysctls(&[
                    ("bridge/bridge-nf-call-iptables", "0"),
                    ("bridge/bridge-nf-call-ip6tables", "0"),
                    ("bridge/bridge-nf-call-arptables", "0"),
                    ("ipv6/conf/all/disable_ipv6", "1"),
                    ("ipv6/conf/default/disable_ipv6", "1"),
                ])?;
                namespace
            }
        };
        let subnet = plan.subnet.unwrap_or_default();
        let mtu = if plan.mtu == 0 { OVERLAY_MTU } else { plan.mtu };
        let (bridge, mtu) = match namespace.links().find(BRIDGE)? {
            // Containers that are there send packets as large as it was.
            Some(link) => (link.index, link.mtu),
            None => {
                changes += 1;
                let mac = mac_of(plan.gateway.unwrap_or(subnet.network()));
                (namespace.links().add_bridge(BRIDGE, mac, Some(mtu))?, mtu)
            }
        };
        let mut overlay = Self {
            path: path.to_owned(),
            namespace,
            subnet,
            dual_stack: plan.dual_stack,
            mtu,
            bridge,
            vxlan_name: String::new(),
            vxlan: 0,
            tap: None,
            remote: BTreeMap::new(),
            stale: Vec::new(),
        };
        changes += overlay.ensure_link(host, tag, plan, underlay)?;
        Ok((overlay, changes))
    }

    /// Makes what leads to other hosts, as far as it is not there.
    pub fn ensure_link(
        &mut self,
        host: &Namespace,
        tag: &str,
        plan: &OverlayPlan,
        underlay: Underlay,
    ) -> io::Result<usize> {
        match &plan.keys {
            None => self.ensure_vxlan(host, tag, plan.vni, underlay),
            Some(_) => self.ensure_tap(),
        }
    }

    fn ensure_tap(&mut self) -> io::Result<usize> {
        if self.tap.is_some() {
            return Ok(0);
        }
        let links = self.namespace.links();
        let mut changes = 0;
        for link in links.list_prefix(VXLAN_PREFIX)? {
            changes += 1;
            links.delete(&link.name)?;
        }
        let found = links.find(SEALED)?;
        let tap = Tap::open(&self.namespace, SEALED)?;
        let index = links.index(SEALED)?;
        if !found.is_some_and(|link| link.up && link.master == Some(self.bridge) && link.mtu == self.mtu) {
            changes += 1;
            links.set_mtu(index, self.mtu)?;
            links.set_master(index, self.bridge)?;
            links.set_up(index)?;
        }
        // With the question the kernel tells the bridge of the carrier that came with the device.
        links.index(SEALED)?;
        self.tap = Some(Arc::new(tap));
        Ok(changes)
    }

    /// What an encrypted overlay's frames come from and go to, and on which hosts the endpoints are.
    pub(crate) fn sealed(&self) -> Option<(&Arc<Tap>, &BTreeMap<Ipv4Addr, Ipv4Addr>)> {
        self.tap.as_ref().map(|tap| (tap, &self.remote))
    }

    /// Makes the VXLAN link anew if VNI or underlay have changed. Its name says both, so that a link of an earlier daemon
    /// is known by its name.
    fn ensure_vxlan(&mut self, host: &Namespace, tag: &str, vni: u32, underlay: Underlay) -> io::Result<usize> {
        let name = vxlan_name(tag, vni, underlay, self.mtu);
        if name == self.vxlan_name {
            return Ok(0);
        }
        let links = self.namespace.links();
        let mut found = None;
        let mut changes = 0;
        for link in links.list_prefix(VXLAN_PREFIX)? {
            if link.name == name && link.master == Some(self.bridge) && link.up {
                found = Some(link.index);
            } else {
                changes += 1;
                links.delete(&link.name)?;
            }
        }
        if found.is_none() {
            let vxlan = Vxlan {
                name: &name,
                vni,
                port: underlay.vxlan_port(),
                local: underlay.vtep,
                mtu: self.mtu,
                proxy: true,
                namespace: Some(std::os::fd::AsFd::as_fd(self.namespace.fd())),
            };
            // Left behind by a daemon that was killed between making and moving it.
            host.links().delete(&name)?;
            host.links().add_vxlan(&vxlan)?;
            changes += 1;
            if self.dual_stack.is_some() {
                self.answer_for_ipv6(&name)?;
            }
        }
        let index = match found {
            Some(index) => index,
            None => {
                let index = links.index(&name)?;
                links.set_master(index, self.bridge)?;
                links.set_up(index)?;
                index
            }
        };
        self.vxlan = index;
        self.vxlan_name = name;
        self.remote = if found.is_some() { self.place().read()? } else { BTreeMap::new() };
        Ok(changes)
    }

    fn place(&self) -> remote::Place<'_> {
        remote::Place { links: self.namespace.links(), link: self.vxlan, dual_stack: self.dual_stack }
    }

    /// Lets the VXLAN link have entries for IPv6 addresses, but none of its own, with which it would take part.
    fn answer_for_ipv6(&self, name: &str) -> io::Result<()> {
        let conf = |key: &str| format!("ipv6/conf/{name}/{key}");
        self.namespace.write_sysctls(&[
            (&conf("addr_gen_mode"), "1"),
            (&conf("accept_ra"), "0"),
            (&conf("disable_ipv6"), "0"),
        ])
    }

    /// Forgets what of it is not as it was made, so that [`ensure_link`](Self::ensure_link) and
    /// [`put_remote`](Self::put_remote) make it. False if all of it has to be made anew.
    pub fn look_again(&mut self) -> io::Result<bool> {
        let links = self.namespace.links();
        if !links.find(BRIDGE)?.is_some_and(|link| link.index == self.bridge && link.up) {
            return Ok(false);
        }
        let fits = |link: &LinkInfo| link.up && link.master == Some(self.bridge);
        if self.tap.is_some() {
            match links.find(SEALED)? {
                None => self.tap = None,
                Some(link) if !fits(&link) => {
                    links.set_master(link.index, self.bridge)?;
                    links.set_up(link.index)?;
                }
                Some(_) => {}
            }
        } else if links.find(&self.vxlan_name)?.is_some_and(|link| link.index == self.vxlan && fits(&link)) {
            self.remote = self.place().read()?;
        } else {
            self.vxlan_name.clear();
        }
        Ok(true)
    }

    /// Puts the endpoints of other hosts that `wanted` has; returns how many entries were written.
    pub fn put_remote(&mut self, wanted: &BTreeMap<Ipv4Addr, Ipv4Addr>) -> (usize, Vec<String>) {
        let (mut missing, mut stale) = (Vec::new(), Vec::new());
        for (address, had, has) in differences(entries(&self.remote), entries(wanted)) {
            missing.extend(has.map(|vtep| (address, *vtep)));
            stale.extend(had.filter(|_| has.is_none()).map(|vtep| (address, *vtep)));
        }
        self.stale = stale;
        if self.tap.is_some() {
            self.remote.extend(missing);
            return (0, Vec::new());
        }
        let (count, done, failures) = self.place().put(&missing);
        self.remote.extend(done);
        (count, failures)
    }

    /// Takes away those that [`put_remote`](Self::put_remote) was not given.
    pub fn prune_remote(&mut self) -> (usize, Vec<String>) {
        let stale = std::mem::take(&mut self.stale);
        let (count, done, failures) = match self.tap {
            Some(_) => (0, stale, Vec::new()),
            None => self.place().prune(&stale),
        };
        done.iter().for_each(|(address, _)| _ = self.remote.remove(address));
        (count, failures)
    }

    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// Whether the mesh can keep clients' addresses on this kernel.
    pub fn probe_way_back(&self) -> Result<(), Box<dyn std::error::Error>> {
        crate::ingress::task::probe(&self.namespace, BRIDGE)
    }

    /// An address of this overlay with the subnet's prefix length.
    pub fn with_prefix(&self, address: Ipv4Addr) -> Ipv4Net {
        Ipv4Net::new(address, self.subnet.prefix_len()).expect("the prefix length of a subnet is at most 32")
    }

    /// The address that goes with it, on a network with IPv6.
    pub(crate) fn six(&self, address: Ipv4Addr) -> Option<ipnet::Ipv6Net> {
        self.dual_stack.map(|dual| dual.with_prefix(address))
    }

    /// Takes everything away: the link first, so that its VNI is free even if somebody still holds the namespace.
    pub fn remove(self) -> io::Result<()> {
        let link = self.namespace.links().delete(if self.tap.is_some() { SEALED } else { &self.vxlan_name });
        let bridge = self.namespace.links().delete(BRIDGE);
        Namespace::delete(&self.path)?;
        link.and(bridge).map(|_| ())
    }
}

/// Removes an overlay of an earlier daemon that is in no plan.
pub fn remove_stale(path: &Path) -> io::Result<()> {
    if let Ok(namespace) = Namespace::open(path) {
        for link in namespace.links().list()? {
            if link.name.starts_with(VXLAN_PREFIX)
                || link.name.starts_with(endpoint::PORT_PREFIX)
                || link.name == BRIDGE
                || link.name == SEALED
            {
                namespace.links().delete(&link.name)?;
            }
        }
    }
    Namespace::delete(path)
}

/// FNV-1a over what makes two links interchangeable.
fn vxlan_name(tag: &str, vni: u32, underlay: Underlay, mtu: u32) -> String {
    let text = format!("{tag} {vni} {:?} {} {mtu}", underlay.vtep, underlay.port);
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{VXLAN_PREFIX}{hash:08x}")
}
