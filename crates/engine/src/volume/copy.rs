//! Copy-up: the image's content at a mount's target becomes the first content of an empty volume.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, mknodat, openat2, utimensat,
};

use super::Populate;

/// Copies into the empty directory `to`, with the owner and mode of the directory itself. `Ok(false)`: nothing is there.
pub(super) fn populate(from: &Populate, to: &Path) -> io::Result<bool> {
    let root = rustix::fs::open(&from.rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let target = from.target.strip_prefix("/").unwrap_or(&from.target);
    let target = if target.as_os_str().is_empty() { Path::new(".") } else { target };
    // The image may have planted a symlink there; it is followed inside the container's root only.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = openat2(&root, target, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    let source = match source {
        Ok(source) => source,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}/.", source.as_raw_fd()));
    directory(&source, to)?;
    Ok(true)
}

fn directory(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&to)?;
            directory(&from, &to)?;
            continue;
        }
        let meta = fs::symlink_metadata(&from)?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() {
            io::copy(&mut File::open(&from)?, &mut File::create(&to)?)?;
        } else {
            let node = match () {
                () if kind.is_fifo() => FileType::Fifo,
                () if kind.is_char_device() => FileType::CharacterDevice,
                () if kind.is_block_device() => FileType::BlockDevice,
                () => continue, // a socket means nothing without its process
            };
            mknodat(CWD, &to, node, Mode::from_raw_mode(meta.mode() & 0o7777), meta.rdev())?;
        }
        attributes(&from, &to, &meta)?;
    }
    attributes(from, to, &fs::symlink_metadata(from)?)
}

/// Owner, xattrs, mode, times, in the order in which they do not undo each other.
fn attributes(from: &Path, to: &Path, meta: &fs::Metadata) -> io::Result<()> {
    std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    xattrs(from, to);
    if !meta.file_type().is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Copies what the file system below can keep.
fn xattrs(from: &Path, to: &Path) {
    let mut names = vec![0; 65536];
    let Ok(length) = rustix::fs::llistxattr(from, &mut names[..]) else { return };
    for name in names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let Ok(name) = CString::new(name) else { continue };
        let mut value = vec![0; 65536];
        let copied = rustix::fs::lgetxattr(from, name.as_c_str(), &mut value[..])
            .and_then(|length| rustix::fs::lsetxattr(to, name.as_c_str(), &value[..length], XattrFlags::empty()));
        if let Err(error) = copied {
            tracing::debug!(path = %to.display(), name = %String::from_utf8_lossy(name.as_bytes()), %error, "xattr not copied");
        }
    }
}

/// Bytes of files under a directory, each inode once; other file systems mounted below are not counted.
pub(super) fn size(root: &Path) -> io::Result<u64> {
    let device = fs::symlink_metadata(root)?.dev();
    let mut seen = std::collections::BTreeSet::new();
    let mut total = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)?.flatten() {
            // Files come and go while this walks.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != device {
                continue;
            }
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.nlink() == 1 || seen.insert(meta.ino()) {
                total += meta.len();
            }
        }
    }
    Ok(total)
}

/// Whether a directory has nothing in it.
pub(super) fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}
