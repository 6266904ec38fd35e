//! A network namespace: made, opened, entered, forgotten.
//!
//! A thread that entered another namespace must never run anything else afterwards, so every visit has its own thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use super::{Links, RouteSocket};

/// A network namespace and a route socket in it. Cheap to clone. It pins the namespace: drop every clone before the
/// namespace is meant to go.
#[derive(Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

struct Inner {
    fd: Arc<OwnedFd>,
    links: Links,
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Namespace").field(&self.inner.fd).finish()
    }
}

impl Namespace {
    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        let fd = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        Ok(Self { inner: Arc::new(Inner { fd: Arc::new(fd), links: Links::new(RouteSocket::open()?) }) })
    }

    /// Makes a namespace with its loopback up and bind-mounts it at `path`, which must not exist.
    pub fn create(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::options().write(true).create_new(true).open(path)?;
        let made = on_own_thread("netns-create", || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = Self::current()?;
            nix::mount::mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(namespace)
        })
        .and_then(|made: io::Result<Self>| made)
        .and_then(|namespace| namespace.links().set_up(LOOPBACK).map(|()| namespace));
        made.inspect_err(|_| {
            // The mount may or may not have been made; either way the name must be free for the next attempt.
            let _ = Self::delete(path);
        })
    }

    /// A namespace that is bind-mounted at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(Arc::new(File::open(path)?.into()))
    }

    /// A namespace by a descriptor of it.
    pub fn from_fd(fd: Arc<OwnedFd>) -> io::Result<Self> {
        let socket = visit(fd.as_fd(), RouteSocket::open)??;
        Ok(Self { inner: Arc::new(Inner { fd, links: Links::new(socket) }) })
    }

    /// Takes the bind mount away; the namespace lives on until the last process, socket and descriptor is gone.
    /// Succeeds when there is nothing.
    pub fn delete(path: &Path) -> io::Result<()> {
        match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Runs `f` on a thread of its own inside the namespace. Sockets opened there stay in it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        visit(self.inner.fd.as_fd(), f)
    }

    /// Links, addresses, routes, rules, neighbours of this namespace.
    pub fn links(&self) -> &Links {
        &self.inner.links
    }

    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.inner.fd
    }

    /// Writes `/proc/sys/net/<key>` for each `(key, value)`, e.g. `("ipv4/conf/eth0/rp_filter", "0")`, in one visit.
    /// A key that this kernel does not have is skipped.
    pub fn write_sysctls(&self, settings: &[(&str, &str)]) -> io::Result<()> {
        self.run(|| settings.iter().try_for_each(|(key, value)| write_sysctl(key, value)))?
    }
}

/// Index of `lo`, in every namespace.
const LOOPBACK: u32 = 1;

fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    match std::fs::write(Path::new("/proc/sys/net").join(key), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn visit<T: Send>(fd: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_thread("netns-visit", || {
        nix::sched::setns(fd, CloneFlags::CLONE_NEWNET)?;
        Ok(f())
    })?
}

fn on_own_thread<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(256 * 1024).spawn_scoped(scope, f)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
