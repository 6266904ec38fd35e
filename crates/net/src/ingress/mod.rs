//! The mesh on this host: published ports of services, on every host whether it runs a task or not.
//!
//! ```text
//!   client -> host:8080 --dnat--> ing-<tag> --(ingress overlay)--> task:80
//!   client <- host:8080 <-------- ing-<tag> <-(same host's MAC)--- task
//! ```
//!
//! The host has a leg on the ingress overlay. A connection to a published port is given to a task there, whichever host it
//! runs on, and keeps its client's address; only the source port is moved into a range of this host's own, so that two
//! hosts never send a task the same address and port. The task answers through the host the connection came by, which it
//! knows by the MAC ([`task`]).
//!
//! Connections and datagrams of IPv6 clients, and all connections to a port that is asked to begin them with a header, are not
//! translated but relayed by this daemon, which listens on the ports (`relay`, `datagrams`).
//!
//! Decides the rules ([`rules`]), the leg ([`leg`]) and the held ports ([`hold`]). Must not know which services there are.

mod datagrams;
pub mod hold;
pub mod leg;
mod proxy_protocol;
mod relay;
pub mod rules;
pub mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use skep_model::plan::{IngressPlan, MeshPort};
use skep_model::service::Protocol;

use crate::link::Namespace;
use crate::nft::{Family, NftError, NftSocket, Ownership, Table, removal};
use crate::overlay::{Endpoint, Overlay};

use rules::{MeshRules, SourceMode};

/// The mesh that is in place.
#[derive(Debug)]
pub struct Mesh {
    leg: String,
    address: Option<Ipv4Addr>,
    nft: NftSocket,
    prefix: String,
    rules: MeshRules,
    wanted: Table,
    applied: Option<Table>,
    held: hold::HeldPorts,
    relays: relay::Relays,
    datagrams: datagrams::Relays,
}

/// What one update of the mesh did.
#[derive(Debug, Default)]
pub struct MeshUpdate {
    pub changes: usize,
    pub failures: Vec<String>,
    /// The rules could not be put in force.
    pub misdirected: bool,
    /// Backends that take no more datagrams.
    pub dropped: BTreeSet<Ipv4Addr>,
}

/// The prefix of this daemon's tables in the host's namespace; tables of an earlier run have it too.
fn table_prefix(tag: &str) -> String {
    format!("skep-mesh-{tag}-")
}

/// The key of the host's leg among the endpoints of the ingress overlay.
const LEG_KEY: &str = "host";

impl Mesh {
    pub fn open(host: &Namespace, tag: &str) -> Result<Self, NftError> {
        let mut nft = NftSocket::open(host.fd())?;
        let prefix = table_prefix(tag);
        let wanted = Table::new(Family::Ip, fresh_name(&mut nft, Family::Ip, &prefix)?, Ownership::Shared);
        Ok(Self {
            leg: leg::name(tag),
            address: None,
            nft,
            prefix,
            rules: MeshRules::default(),
            wanted,
            applied: None,
            held: hold::HeldPorts::default(),
            relays: relay::Relays::new(),
            datagrams: datagrams::Relays::new(leg::name(tag)),
        })
    }

    pub fn update(&mut self, host: &Namespace, overlay: &Overlay, plan: &IngressPlan, mode: SourceMode) -> MeshUpdate {
        let mut update = MeshUpdate::default();
        let Some(address) = plan.address.map(|net| net.addr()) else { return update };
        if self.address != Some(address) {
            let endpoint = Endpoint { key: LEG_KEY, namespace: host, ifname: &self.leg, address };
            match overlay.attach(&endpoint).and_then(|changes| leg::prepare(host, &self.leg).map(|()| changes)) {
                Ok(changes) => {
                    self.address = Some(address);
                    update.changes += changes;
                }
                Err(error) => update.failures.push(format!("failed to connect this host to the mesh: {error}")),
            }
        }
        let (changes, failures) = self.held.hold(host, &self.leg, &plan.ports);
        update.changes += changes;
        update.failures.extend(failures);
        let of = |wanted: Protocol| {
            let ports = plan.ports.iter().filter(move |((protocol, _), _)| *protocol == wanted);
            ports.map(|((_, port), plan)| (*port, plan))
        };
        let streams = self.relays.update(of(Protocol::Tcp), |port| self.held.socket((Protocol::Tcp, port)));
        let datagrams = self.datagrams.update(of(Protocol::Udp), |port| self.held.socket((Protocol::Udp, port)));
        for (changes, failures) in [streams, datagrams] {
            update.changes += changes;
            update.failures.extend(failures);
        }
        self.rules.prepare(&mut self.wanted, &self.leg, mode);
        update.dropped = self.rules.update(&mut self.wanted, &plan.ports);
        match self.commit() {
            Ok(changes) => update.changes += changes,
            Err(error) => {
                update.misdirected = true;
                update.failures.push(crate::dataplane::chain_of(&error));
            }
        }
        update
    }

    /// Lets go the clients of backends that are dead, as far as the kernel cannot.
    pub fn cut(&self, dead: &BTreeSet<Ipv4Addr>) {
        self.relays.cut(dead);
    }

    /// Forgets what of it somebody else has taken away or changed, so that the next update makes it.
    pub fn look_again(&mut self) -> Result<(), NftError> {
        self.address = None;
        if let Some(applied) = &self.applied
            && !self.nft.has(applied)?
        {
            self.wanted.name = fresh_name(&mut self.nft, Family::Ip, &self.prefix)?;
            self.applied = None;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<usize, NftError> {
        let mut changes = self.nft.apply(self.applied.as_ref(), &self.wanted)?;
        if changes > 0 && self.applied.replace(self.wanted.clone()).is_none() {
            changes += remove_others(&mut self.nft, Family::Ip, &self.prefix, &self.wanted.name)?;
        }
        Ok(changes)
    }

    /// Takes the mesh of this host away.
    pub fn remove(mut self, overlay: Option<&Overlay>) -> Result<usize, NftError> {
        if let Some(overlay) = overlay
            && let Err(error) = overlay.detach(LEG_KEY)
        {
            tracing::warn!(%error, "failed to remove the host's leg of the mesh");
        }
        remove_others(&mut self.nft, Family::Ip, &self.prefix, "")
    }
}

/// Removes what an earlier daemon's mesh left in the host's namespace.
pub fn remove_stale(host: &Namespace, tag: &str) -> io::Result<usize> {
    let removed = usize::from(host.links().delete(&leg::name(tag))?);
    let mut nft = NftSocket::open(host.fd()).map_err(io::Error::other)?;
    Ok(removed + remove_others(&mut nft, Family::Ip, &table_prefix(tag), "").map_err(io::Error::other)?)
}

/// `<prefix>0`, or `<prefix>1` while a table of an earlier daemon has that name. A table is never replaced under its own
/// name: for an instant a packet could find the old rules and none of their sets. The new table is put beside the old one,
/// which then goes; whichever translates a connection first has decided.
pub(crate) fn fresh_name(nft: &mut NftSocket, family: Family, prefix: &str) -> Result<String, NftError> {
    let taken = nft.tables(family, prefix)?;
    let first = format!("{prefix}0");
    Ok(if taken.contains(&first) { format!("{prefix}1") } else { first })
}

/// Removes the tables with this prefix but for `keep`.
pub(crate) fn remove_others(nft: &mut NftSocket, family: Family, prefix: &str, keep: &str) -> Result<usize, NftError> {
    let mut removed = 0;
    for name in nft.tables(family, prefix)? {
        if name != keep {
            nft.send(&removal(family, &name))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Ports and who takes their connections.
pub type Ports = BTreeMap<(Protocol, u16), MeshPort>;
