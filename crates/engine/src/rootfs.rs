//! A container's root: the image's layers under a writable one, and safe ways to look into it.
//!
//! What is inside belongs to the image's maker: every path there is resolved by the kernel as if the root were `/`
//! (`openat2` with `RESOLVE_IN_ROOT`), so that no link leads out.

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::container::GraphDirs;

/// Files of the container's that are read whole (`/etc/passwd`) may be no larger.
const MAX_FILE: u64 = 4 << 20;

pub(crate) fn graph(container_dir: &Path, lower: Vec<PathBuf>) -> GraphDirs {
    GraphDirs {
        lower,
        upper: container_dir.join("upper"),
        work: container_dir.join("work"),
        merged: container_dir.join("merged"),
    }
}

/// Whether the writable layer is to survive a crash of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// As any file: what the container syncs is on disk, and its end syncs the rest.
    Kept,
    /// Of a swarm task or with `--rm`, which nobody starts again: nothing is ever synced (overlayfs `volatile`). The sync
    /// at the end is of the whole file system below, and takes seconds on a host that writes much.
    Discarded,
}

/// Mounts the root; what is mounted there already stays.
///
/// By the new mount API, one `lowerdir+` a layer: the option string of mount(2) is limited to a page, which is few layers
/// with paths as long as ours. Kernels before 6.5 have no `lowerdir+`; there the whole string is one value, up to 256 bytes
/// less than a page.
pub(crate) fn mount(dirs: &GraphDirs, durability: Durability) -> std::io::Result<()> {
    if is_mounted(&dirs.merged) {
        return Ok(());
    }
    if durability == Durability::Discarded {
        // A volatile mount marks the work directory and refuses it a second time; ours is used again only while the host
        // is up, when nothing is lost.
        let _ = std::fs::remove_dir_all(&dirs.work);
    }
    for directory in [&dirs.upper, &dirs.work, &dirs.merged] {
        std::fs::create_dir_all(directory)?;
    }
    set_mode(&dirs.upper)?;
    let filesystem = match durability {
        Durability::Discarded => configure(dirs, true, durability),
        Durability::Kept => Err(std::io::ErrorKind::Other.into()),
    };
    // Older kernels know fewer words.
    let filesystem = filesystem
        .or_else(|_| configure(dirs, true, Durability::Kept))
        .or_else(|_| configure(dirs, false, Durability::Kept))?;
    let mount = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mount, c"", rustix::fs::CWD, &dirs.merged, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// The root directory of a container is that of its upper layer.
fn set_mode(upper: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(upper, std::fs::Permissions::from_mode(0o755))
}

fn configure(dirs: &GraphDirs, one_by_one: bool, durability: Durability) -> std::io::Result<OwnedFd> {
    let filesystem = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = filesystem.as_fd();
    fsconfig_set_string(fd, c"source", c"overlay")?;
    if one_by_one {
        for layer in &dirs.lower {
            fsconfig_set_string(fd, c"lowerdir+", &*c_path(layer)?)?;
        }
    } else {
        let joined = dirs.lower.iter().map(|l| l.to_string_lossy().replace(':', "\\:")).collect::<Vec<_>>().join(":");
        fsconfig_set_string(fd, c"lowerdir", &*CString::new(joined)?)?;
    }
    fsconfig_set_string(fd, c"upperdir", &*c_path(&dirs.upper)?)?;
    fsconfig_set_string(fd, c"workdir", &*c_path(&dirs.work)?)?;
    if durability == Durability::Discarded {
        fsconfig_set_flag(fd, c"volatile")?;
    }
    fsconfig_create(fd)?;
    Ok(filesystem)
}

fn c_path(path: &Path) -> std::io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Takes the root away; fine if it is not there. Lazily, since a process elsewhere may be looking into it.
pub(crate) fn unmount(merged: &Path) {
    while rustix::mount::unmount(merged, UnmountFlags::DETACH).is_ok() {}
}

/// Takes the root away at once, but keeps it alive until what this gives back is dropped, which may take long: the last
/// reference to an overlay syncs the whole file system below it.
pub(crate) fn detach(merged: &Path) -> Option<OwnedFd> {
    let last = is_mounted(merged)
        .then(|| rustix::fs::open(merged, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok())
        .flatten();
    unmount(merged);
    last
}

/// A mount point is on another device than its parent.
pub(crate) fn is_mounted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| std::fs::symlink_metadata(p).map(|m| m.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

/// The root of a container, opened.
#[derive(Debug)]
pub(crate) struct RootDir(OwnedFd);

impl RootDir {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn open_inside(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The text of a file, empty if there is none.
    pub(crate) fn read(&self, path: &str) -> String {
        let Ok(fd) = self.open_inside(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK) else { return String::new() };
        let mut text = Vec::new();
        match std::fs::File::from(fd).take(MAX_FILE).read_to_end(&mut text) {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// Whether there is nothing at `path`, or an empty directory.
    pub(crate) fn is_vacant(&self, path: &Path) -> bool {
        match self.open_inside(path, OFlags::RDONLY | OFlags::DIRECTORY).and_then(rustix::fs::Dir::new) {
            Ok(entries) => entries.flatten().all(|e| matches!(e.file_name().to_bytes(), b"." | b"..")),
            Err(error) => error == rustix::io::Errno::NOENT,
        }
    }

    /// Makes a directory with its parents, following links inside the root.
    pub(crate) fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        let mut done = PathBuf::from("/");
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let parent = self.open_inside(&done, OFlags::PATH | OFlags::DIRECTORY)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            done.push(name);
        }
        self.open_inside(&done, OFlags::PATH | OFlags::DIRECTORY).map(drop).map_err(Into::into)
    }
}

/// Bytes of regular files below a directory, on its own device.
pub(crate) fn size_of(directory: &Path) -> u64 {
    let mut total = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            total += size_of(&entry.path());
        } else if metadata.is_file() {
            total += metadata.len();
        }
    }
    total
}

/// Binds the part `subpath` of a volume to `folder/name`, and gives back that path. Links are followed within the volume
/// only, and what was found stays what is mounted: a container that has the volume cannot put something else in its place.
pub(crate) fn mount_subpath(volume: &Path, subpath: &str, folder: &Path, name: &str) -> std::io::Result<PathBuf> {
    let found = RootDir::open(volume)?.open_inside(Path::new(subpath), OFlags::PATH)?;
    std::fs::create_dir_all(folder)?;
    if !is_mounted(folder) {
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount(c"tmpfs", folder, c"tmpfs", flags, c"mode=0700,size=64k")?;
    }
    let target = folder.join(name);
    let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    if std::fs::metadata(&source)?.is_dir() {
        std::fs::create_dir_all(&target)?;
    } else {
        std::fs::write(&target, "")?;
    }
    rustix::mount::mount_bind_recursive(source, &target)?;
    Ok(target)
}

/// A tmpfs for secrets: never on disk.
pub(crate) fn mount_secrets_tmpfs(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    if is_mounted(path) {
        return Ok(());
    }
    let flags =
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOEXEC;
    let options: &CStr = c"mode=0700,size=64m";
    rustix::mount::mount(c"tmpfs", path, c"tmpfs", flags, options)?;
    Ok(())
}
