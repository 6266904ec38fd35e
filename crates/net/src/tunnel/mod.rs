//! Encrypted overlays: what takes frames from hosts to hosts, sealed, in the place of the VXLAN link.
//!
//! ```text
//!   overlay namespace            daemon                                       host namespace
//!   br0 --- tap-sealed ---> reader, a thread a network: seal ---------> udp, the port after VXLAN's
//!               ^---------- receiver, one thread: open, replay check <---------'
//! ```
//!
//! An encrypted network has no VXLAN link, so nothing of it can leave, or come in, that way; without a key, or while the
//! daemon is down, nothing moves. Which host has which MAC comes from the plan; nothing is learned or flooded, and ARP and
//! neighbour solicitations are answered here. `seal` and `open` decide what is sent and taken and know neither socket nor clock; `wire` is the format.
//!
//! Decides how frames travel sealed. Must not know where keys come from or when they change.

mod arp;
mod channel;
mod nd;
mod open;
mod seal;
mod socket;
mod tap;
mod window;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use skep_model::network::{DualStack, NetworkKeys, mac_of};

use crate::link::Namespace;
use channel::{Channel, locked};
use open::News;
use socket::Socket;
pub(crate) use tap::Tap;
use tap::{LARGEST, VIRTIO};
use wire::{Header, name_of};

/// IP and UDP.
const UNDERLAY_OVERHEAD: usize = 28;
/// Larger datagrams would be fragmented somewhere on most ways.
const UNDERLAY_MTU: usize = 1500;

type Mac = [u8; 6];

/// One network as the threads see it.
struct Network {
    tap: Arc<Tap>,
    /// What it was last said to be.
    remote: BTreeMap<Ipv4Addr, Ipv4Addr>,
    keys: NetworkKeys,
    dual_stack: Option<DualStack>,
    hosts: HashMap<Mac, Arc<Channel>>,
    channels: HashMap<Ipv4Addr, Arc<Channel>>,
}

struct Shared {
    socket: Socket,
    /// Bytes of a datagram.
    size: usize,
    networks: ArcSwap<HashMap<u32, Arc<Network>>>,
}

/// The way of all encrypted networks of this host. Dropping it ends its threads; the TAP interfaces stay.
pub(crate) struct Tunnel {
    own: Ipv4Addr,
    port: u16,
    shared: Arc<Shared>,
    readers: BTreeMap<u32, Worker>,
    _receiver: Worker,
}

/// A thread that ends when this is dropped.
struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(name: &str, work: impl FnOnce(&EventFd) + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let heard = stop.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&heard))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Worker {
    fn is_at_work(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until there is something to read; false if it is time to end.
fn wait(source: impl AsFd, stop: &EventFd) -> bool {
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => !fds[1].any().unwrap_or(true),
        Err(error) => error == nix::Error::EINTR,
    }
}

impl Tunnel {
    /// Opens the socket at the host's address on the underlay, and listens.
    pub(crate) fn open(host: &Namespace, own: Ipv4Addr, port: u16) -> io::Result<Self> {
        let size = underlay_mtu(host, own)?.min(UNDERLAY_MTU) - UNDERLAY_OVERHEAD;
        let shared = Arc::new(Shared { socket: Socket::open(host, own, port)?, size, networks: ArcSwap::default() });
        let heard = shared.clone();
        let receiver = Worker::start("sealed-receive", move |stop| heard.receive(stop))?;
        Ok(Self { own, port, shared, readers: BTreeMap::new(), _receiver: receiver })
    }

    /// Whether this is the tunnel of a host with this address and port.
    pub(crate) fn is_at(&self, own: Ipv4Addr, port: u16) -> bool {
        (self.own, self.port) == (own, port)
    }

    /// Carries the network from now on as said: `remote` is address to host.
    pub(crate) fn put(
        &mut self,
        vni: u32,
        tap: &Arc<Tap>,
        remote: &BTreeMap<Ipv4Addr, Ipv4Addr>,
        dual_stack: Option<DualStack>,
        keys: &NetworkKeys,
    ) -> io::Result<()> {
        let before = self.shared.networks.load_full();
        let before = before.get(&vni);
        let reads = self.readers.get(&vni).is_some_and(Worker::is_at_work);
        let kept = before.filter(|network| reads && Arc::ptr_eq(&network.tap, tap));
        if kept.is_some_and(|network| network.remote == *remote && network.keys == *keys) {
            return Ok(());
        }
        let mut channels = HashMap::new();
        let mut hosts = HashMap::new();
        for (address, peer) in remote {
            let channel = channels.entry(*peer).or_insert_with(|| {
                let known = before.and_then(|network| network.channels.get(peer)).cloned();
                known.unwrap_or_else(|| Arc::new(Channel::new(vni, self.own, *peer)))
            });
            hosts.insert(mac_of(*address), channel.clone());
        }
        let strangers: Vec<Arc<Channel>> = channels.values().cloned().collect();
        for channel in &strangers {
            channel.use_keys(keys);
        }
        self.replace(
            vni,
            Some(Network { tap: tap.clone(), remote: remote.clone(), keys: keys.clone(), dual_stack, hosts, channels }),
        );
        for channel in strangers.iter().filter(|channel| !locked(&channel.sender).has_met()) {
            self.shared.greet(channel, 0);
        }
        if kept.is_none() {
            self.readers.remove(&vni);
            let (shared, tap) = (self.shared.clone(), tap.clone());
            let reader = Worker::start("sealed-send", move |stop| shared.forward_all(vni, &tap, stop))?;
            self.readers.insert(vni, reader);
        }
        Ok(())
    }

    /// Carries only these networks.
    pub(crate) fn retain(&mut self, wanted: impl Fn(u32) -> bool) {
        let gone: Vec<u32> = self.shared.networks.load().keys().copied().filter(|vni| !wanted(*vni)).collect();
        for vni in gone {
            self.replace(vni, None);
            self.readers.remove(&vni);
        }
    }

    fn replace(&self, vni: u32, network: Option<Network>) {
        let mut networks = HashMap::clone(&self.shared.networks.load());
        match network {
            Some(network) => networks.insert(vni, Arc::new(network)),
            None => networks.remove(&vni),
        };
        self.shared.networks.store(Arc::new(networks));
    }
}

/// Of the interface with that address.
fn underlay_mtu(host: &Namespace, own: Ipv4Addr) -> io::Result<usize> {
    let index =
        host.links().addresses()?.into_iter().find(|(_, address)| address.addr() == own).map(|(index, _)| index);
    let link = host.links().list()?.into_iter().find(|link| Some(link.index) == index);
    let mtu = link.and_then(|link| usize::try_from(link.mtu).ok()).unwrap_or(UNDERLAY_MTU);
    // The least that IPv6 demands of any link; below it there would be no room to seal in.
    Ok(mtu.max(1280))
}

impl Network {
    /// Tells who asks for the MAC of an endpoint on another host.
    fn answer(&self, message: &[u8]) {
        let known = |address: &Ipv4Addr| self.hosts.contains_key(&mac_of(*address));
        if let Some(address) = arp::asked(message).filter(known) {
            let _ = self.tap.write(&arp::answer(message, mac_of(address)));
            return;
        }
        let Some(dual) = self.dual_stack else { return };
        if let Some(address) = nd::asked(message).and_then(|six| dual.four(six)).filter(known) {
            let _ = self.tap.write(&nd::answer(message, mac_of(address)));
        }
    }
}

impl Shared {
    /// Reads what the bridge sends to other hosts, until told to end.
    fn forward_all(&self, vni: u32, tap: &Tap, stop: &EventFd) {
        let mut message = vec![0; LARGEST];
        let mut sealed = Vec::with_capacity(2 * LARGEST);
        loop {
            match tap.read(&mut message) {
                Ok(length) => {
                    if let Some(network) = self.networks.load().get(&vni) {
                        self.forward(network, &message[..length], &mut sealed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(tap, stop) {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, vni, "an encrypted network's interface is gone");
                    return;
                }
            }
        }
    }

    fn forward(&self, network: &Network, message: &[u8], sealed: &mut Vec<u8>) {
        let Some(destination) = message.get(VIRTIO..).and_then(|frame| frame.first_chunk::<6>()) else { return };
        let Some(channel) = network.hosts.get(destination) else {
            network.answer(message);
            return;
        };
        sealed.clear();
        let (done, met) = {
            let mut sender = locked(&channel.sender);
            (sender.seal(message, self.size, sealed), sender.has_met())
        };
        if done {
            self.socket.send(sealed, self.size, channel.peer);
        } else if !met {
            self.greet(channel, 0);
        }
    }

    /// Tells the peer whose session this is, if it was not told a moment ago.
    fn greet(&self, channel: &Channel, to: u64) {
        if channel.may_greet() {
            self.introduce(channel, to);
        }
    }

    fn introduce(&self, channel: &Channel, to: u64) {
        let mut greeting = Vec::new();
        if locked(&channel.sender).greet(to, &mut greeting) {
            self.socket.send(&greeting, self.size, channel.peer);
        }
    }

    /// Takes what other hosts send, until told to end.
    fn receive(&self, stop: &EventFd) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.socket.receive(&mut buffer) {
                Ok((length, size, from)) => {
                    let networks = self.networks.load();
                    for datagram in buffer[..length].chunks_mut(size) {
                        self.take(&networks, datagram, from);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(&self.socket, stop) {
                        return;
                    }
                }
                // One datagram's, or of the network it came by.
                Err(error) => tracing::debug!(%error, "receiving for encrypted networks"),
            }
        }
    }

    fn take(&self, networks: &HashMap<u32, Arc<Network>>, datagram: &mut [u8], from: SocketAddrV4) {
        let network = Header::read(datagram).and_then(|header| networks.get(&header.vni));
        let channel = network.and_then(|network| Some((network, network.channels.get(from.ip())?)));
        let Some((network, channel)) = channel else { return };
        let mut receiver = locked(&channel.receiver);
        let message = match receiver.open(datagram) {
            Ok(News::Message(message)) => Some(message),
            Ok(News::Nothing) => None,
            Ok(News::Met(peer, message)) => {
                locked(&channel.sender).meet(peer);
                self.introduce(channel, name_of(&peer));
                message
            }
            Ok(News::Stranger(peer)) => {
                self.greet(channel, name_of(&peer));
                None
            }
            Ok(News::Another(peer)) => {
                channel.renew(&mut receiver);
                self.greet(channel, name_of(&peer));
                return;
            }
            Err(reason) => {
                tracing::trace!(?reason, peer = %channel.peer, "dropped a datagram of an encrypted network");
                None
            }
        };
        if let Some(message) = message {
            let _ = network.tap.write(message);
        }
    }
}
