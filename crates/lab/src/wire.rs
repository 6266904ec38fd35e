//! The switch: a namespace with two bridges. `br0` is the network; hosts that a partition cuts off are moved to `br1`, so
//! that they still reach one another and nobody else. This machine has a leg on `br0`.
//!
//! Every netlink conversation runs on a thread of its own that has entered the namespace it talks about.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use skep_net::nft::{Chain, Family, Hook, NftError, NftSocket, Ownership, Rule, Table, Verdict, removal};

use crate::state::{HostFile, LabFile, Loss};
use crate::{LabError, Result, file};

const NETNS_FOLDER: &str = "/run/netns";

/// `/run/netns/skep-<lab>-<node>`: `ip netns exec` finds a host by it.
pub(crate) fn netns_path(lab: &str, node: &str) -> PathBuf {
    Path::new(NETNS_FOLDER).join(format!("skep-{lab}-{node}"))
}

fn switch_path(lab: &str) -> PathBuf {
    netns_path(lab, "switch")
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> LabError {
    let what = what.into();
    move |source| LabError::Io { what, source }
}

fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LabError {
    let what = what.into();
    move |source| LabError::Netlink { what, source }
}

/// Makes an empty namespace and keeps it by a bind mount.
fn make_netns(path: &Path) -> Result<()> {
    let folder = Path::new(NETNS_FOLDER);
    std::fs::create_dir_all(folder).map_err(file("cannot make", folder))?;
    share(folder).map_err(|e| file("cannot share", folder)(e.into()))?;
    File::create(path).map_err(file("cannot make", path))?;
    let target = path.to_owned();
    let made = std::thread::spawn(move || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    })
    .join();
    match made {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(file("cannot make the namespace", path)(e.into())),
        Err(_) => Err(file("cannot make the namespace", path)(std::io::Error::other("thread panicked"))),
    }
}

/// Makes the folder a shared mount, as the first `ip netns add` of a machine does: that would otherwise lay a mount over
/// those of a lab that is up, which could then not be taken away.
fn share(folder: &Path) -> nix::Result<()> {
    let shared = || mount(None::<&str>, folder, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match shared() {
        // It is no mount yet.
        Err(nix::errno::Errno::EINVAL) => {
            mount(Some(folder), folder, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            shared()
        }
        done => done,
    }
}

/// Lets go of a namespace; it ends with its last process. Nothing there is fine.
fn drop_netns(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(path);
}

/// Runs `job` with a netlink handle of the namespace at `netns`, or of this one.
fn with_netlink<T: Send, F>(netns: Option<&Path>, job: F) -> Result<T>
where
    F: AsyncFnOnce(Handle) -> Result<T> + Send,
{
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                if let Some(path) = netns {
                    let ns = File::open(path).map_err(file("cannot open", path))?;
                    setns(&ns, CloneFlags::CLONE_NEWNET).map_err(|e| file("cannot enter", path)(e.into()))?;
                }
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("no runtime"))?;
                runtime.block_on(async {
                    let (connection, handle, _) =
                        rtnetlink::new_connection().map_err(io("cannot open a netlink socket"))?;
                    let driver = tokio::spawn(connection);
                    let result = job(handle).await;
                    driver.abort();
                    result
                })
            })
            .join()
            .unwrap_or_else(|_| Err(io("a netlink thread")(std::io::Error::other("panicked"))))
    })
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(io(format!("link {name}"))(std::io::Error::from(std::io::ErrorKind::NotFound))),
        Err(e) => Err(netlink(format!("cannot look up link {name}"))(e)),
    }
}

async fn raise(handle: &Handle, index: u32) -> Result<()> {
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .map_err(netlink("cannot raise a link"))
}

async fn give_address(handle: &Handle, index: u32, address: Ipv4Addr) -> Result<()> {
    handle
        .address()
        .add(index, IpAddr::V4(address), 24)
        .execute()
        .await
        .map_err(netlink(format!("cannot give a link the address {address}")))
}

/// Makes a veth pair in the switch's namespace: one end stays on `br0`, the other goes to the namespace of `target` and gets `name`.
fn plug(lab: &str, port: &str, target: &Path, name: &str, address: Ipv4Addr, gateway: Option<Ipv4Addr>) -> Result<()> {
    let target_file = File::open(target).map_err(file("cannot open", target))?;
    let far_end = format!("{port}p");
    with_netlink(Some(&switch_path(lab)), async |handle: Handle| {
        let bridge = index_of(&handle, "br0").await?;
        handle
            .link()
            .add(LinkVeth::new(port, &far_end).build())
            .execute()
            .await
            .map_err(netlink(format!("cannot make the link {port}")))?;
        let near = index_of(&handle, port).await?;
        let far = index_of(&handle, &far_end).await?;
        let enslave = LinkUnspec::new_with_index(near).controller(bridge).up().build();
        handle.link().set(enslave).execute().await.map_err(netlink("cannot plug a link into the switch"))?;
        // Made of the address, so that a host that starts again is who it was to its neighbours' ARP tables.
        let [.., subnet, number] = address.octets();
        let hardware = vec![2, 0x5b, 0, 0, subnet, number];
        let send =
            LinkUnspec::new_with_index(far).name(name).address(hardware).setns_by_fd(target_file.as_raw_fd()).build();
        handle.link().set(send).execute().await.map_err(netlink("cannot hand a link to its host"))
    })?;
    with_netlink(Some(target), async |handle: Handle| {
        if let Ok(lo) = index_of(&handle, "lo").await {
            raise(&handle, lo).await?;
        }
        let index = index_of(&handle, name).await?;
        give_address(&handle, index, address).await?;
        raise(&handle, index).await?;
        if let Some(gateway) = gateway {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
            handle.route().add(route).execute().await.map_err(netlink("cannot add the default route"))?;
        }
        Ok(())
    })
}

/// The machine's leg, named after the lab's network.
fn machine_link(lab: &LabFile) -> String {
    format!("skeplab{}", lab.subnet_index)
}

/// Makes the switch and plugs this machine in.
pub(crate) fn make_switch(lab: &LabFile) -> Result<()> {
    make_netns(&switch_path(&lab.name))?;
    with_netlink(Some(&switch_path(&lab.name)), async |handle: Handle| {
        for bridge in ["br0", "br1"] {
            handle
                .link()
                .add(LinkBridge::new(bridge).build())
                .execute()
                .await
                .map_err(netlink(format!("cannot make the bridge {bridge}")))?;
            let index = index_of(&handle, bridge).await?;
            raise(&handle, index).await?;
        }
        Ok(())
    })?;
    plug(&lab.name, "machine", Path::new("/proc/self/ns/net"), &machine_link(lab), lab.machine_address(), None)
}

/// Makes a host's namespace and plugs it in.
pub(crate) fn plug_host(lab: &LabFile, host: &HostFile) -> Result<()> {
    let path = netns_path(&lab.name, &host.name);
    drop_netns(&path);
    make_netns(&path)?;
    plug(&lab.name, &host.name, &path, "eth0", lab.address(host), Some(lab.machine_address()))
}

/// Pulls a host's plug: its end of the link goes with its namespace, ours is deleted so that peers hear nothing more.
pub(crate) fn unplug_host(lab: &LabFile, host: &HostFile) {
    let _ = with_netlink(Some(&switch_path(&lab.name)), async |handle: Handle| {
        let index = index_of(&handle, &host.name).await?;
        handle.link().del(index).execute().await.map_err(netlink("cannot delete a link"))
    });
    drop_netns(&netns_path(&lab.name, &host.name));
}

/// Puts every host named in `cut_off` on the second bridge and all others on the first.
pub(crate) fn arrange(lab: &LabFile) -> Result<()> {
    with_netlink(Some(&switch_path(&lab.name)), async |handle: Handle| {
        let (main, aside) = (index_of(&handle, "br0").await?, index_of(&handle, "br1").await?);
        for host in &lab.hosts {
            // A killed host has no link; it is arranged when it starts.
            let Ok(index) = index_of(&handle, &host.name).await else { continue };
            let bridge = if lab.cut_off.contains(&host.name) { aside } else { main };
            let message = LinkUnspec::new_with_index(index).controller(bridge).build();
            handle.link().set(message).execute().await.map_err(netlink("cannot move a link between the bridges"))?;
        }
        Ok(())
    })
}

/// Makes the switch lose the packets it is to lose, on every cable that is plugged in.
pub(crate) fn lose(lab: &LabFile) -> Result<()> {
    let switch = switch_path(&lab.name);
    let namespace = File::open(&switch).map_err(file("cannot open", &switch))?;
    let nft = |what: String| move |e: NftError| LabError::Nft { what, source: e };
    let mut socket = NftSocket::open(namespace).map_err(nft("no packet filter".into()))?;
    let present = socket.tables(Family::Netdev, "loss-").map_err(nft("cannot list the losses".into()))?;
    for host in &lab.hosts {
        let name = format!("loss-{}", host.name);
        if present.contains(&name) {
            socket
                .send(&removal(Family::Netdev, &name))
                .map_err(nft(format!("cannot end the loss of {}", host.name)))?;
        }
        let loss = lab.loss.get(&host.name).copied().unwrap_or_default();
        // A killed host has no cable; it is given its losses when it starts.
        if loss == Loss::default() || !has_link(&switch, &host.name) {
            continue;
        }
        let drop = |percent| vec![Rule::new().percent(percent).verdict(Verdict::Drop)];
        let mut table = Table::new(Family::Netdev, name, Ownership::Shared);
        if loss.from_host_percent > 0 {
            table.chain("from", Chain::base(Hook::ingress(&host.name), drop(loss.from_host_percent)));
        }
        if loss.to_host_percent > 0 {
            table.chain("to", Chain::base(Hook::egress(&host.name), drop(loss.to_host_percent)));
        }
        socket.apply(None, &table).map_err(nft(format!("cannot lose packets of {}", host.name)))?;
    }
    Ok(())
}

fn has_link(netns: &Path, name: &str) -> bool {
    with_netlink(Some(netns), async |handle: Handle| index_of(&handle, name).await).is_ok()
}

/// Takes the switch away, and with it every link it still has.
pub(crate) fn drop_switch(lab: &LabFile) {
    let _ = with_netlink(None, async |handle: Handle| {
        let index = index_of(&handle, &machine_link(lab)).await?;
        handle.link().del(index).execute().await.map_err(netlink("cannot delete this machine's link"))
    });
    drop_netns(&switch_path(&lab.name));
}

/// Whether a 10.91.x.0/24 is free on this machine.
pub(crate) fn is_free(subnet_index: u8) -> bool {
    !Path::new("/sys/class/net").join(format!("skeplab{subnet_index}")).exists()
}
