//! A layer's tar becomes a directory that overlayfs can stack.
//!
//! Nothing in a tar is trusted: every path is resolved by the kernel inside the layer's root (`openat2` with
//! `RESOLVE_IN_ROOT`), so neither `..`, an absolute name, nor a symlink planted by an earlier entry leads out. The last
//! component is never followed. Whiteouts (`.wh.name`, `.wh..wh..opq`) become what overlayfs reads: a character device 0/0
//! and the xattr `trusted.overlay.opaque`.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::ImageError;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs's own bookkeeping, which means nothing here.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const XATTR_RECORD: &str = "SCHILY.xattr.";
/// What overlayfs itself keeps in xattrs: an image must not be able to say it (a redirect could name any directory below).
const RESERVED_XATTRS: [&str; 2] = ["trusted.overlay.", "user.overlay."];
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const COPY_BUFFER_BYTES: usize = 128 * 1024;

/// Unpacks `tar` into the existing directory `root`; gives the bytes of regular files written.
pub(super) fn unpack(tar: impl Read, root: &Path) -> Result<u64, ImageError> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| ImageError::Layer(format!("cannot open {}: {error}", root.display())))?;
    let mut unpacker =
        Unpacker { root, parent: None, directories: Vec::new(), size_bytes: 0, buffer: vec![0; COPY_BUFFER_BYTES] };
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(broken)? {
        unpacker.entry(entry.map_err(broken)?)?;
    }
    unpacker.finish()?;
    Ok(unpacker.size_bytes)
}

/// The stream ended or does not parse.
fn broken(error: io::Error) -> ImageError {
    if error.kind() == io::ErrorKind::UnexpectedEof
        || error.to_string().contains("failed to read entire block")
        || error.to_string().contains("unexpected EOF")
    {
        ImageError::Layer("unexpected EOF: the layer's tar is truncated".to_owned())
    } else {
        ImageError::Layer(format!("the layer's tar cannot be read: {error}"))
    }
}

struct Unpacker {
    root: OwnedFd,
    /// The directory of the entry before: archives are mostly sorted, so most entries need no walk.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories get their times last, since making what is in them changes these.
    directories: Vec<(Vec<u8>, Timestamps)>,
    size_bytes: u64,
    buffer: Vec<u8>,
}

/// What an entry says about itself besides its kind.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: Mode,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Unpacker {
    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), ImageError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let raw_name = entry.path_bytes().into_owned();
        let components = components(&raw_name).ok_or_else(|| {
            ImageError::Layer(format!("invalid tar entry: {:?} is outside of the layer", lossy(&raw_name)))
        })?;
        let attributes = attributes(&mut entry)?;
        let Some((name, parents)) = components.split_last() else {
            return self.root_directory(kind, &attributes); // `./`
        };
        let parent_path = parents.join(&b'/');
        let in_context = |error: Errno| {
            ImageError::Layer(format!("cannot unpack {:?}: {}", lossy(&raw_name), io::Error::from(error)))
        };
        let parent = self.parent(&parent_path).map_err(in_context)?;

        let outcome = if name.starts_with(WHITEOUT) {
            whiteout(parent.as_fd(), name)
        } else {
            let is_directory = kind.is_dir() || (kind.is_file() && raw_name.ends_with(b"/"));
            self.make_way(parent.as_fd(), name, is_directory)
                .and_then(|covered| {
                    if is_directory {
                        self.directory(parent.as_fd(), name, &covered)
                    } else {
                        self.other(parent.as_fd(), name, kind, &mut entry, &raw_name)
                    }
                })
                .and_then(|made| {
                    if made == Made::Whole {
                        set_attributes(parent.as_fd(), name, kind.is_symlink(), &attributes)?;
                        if is_directory {
                            self.directories.push((components.join(&b'/'), attributes.times.clone()));
                        }
                    }
                    Ok(())
                })
        };
        self.parent = Some((parent_path, parent));
        match outcome {
            Ok(()) => Ok(()),
            Err(Failure::System(error)) => Err(in_context(error)),
            Err(Failure::Tar(error)) => Err(broken(error)),
            Err(Failure::Refused(text)) => Err(ImageError::Layer(text)),
        }
    }

    fn root_directory(&mut self, kind: EntryType, attributes: &Attributes) -> Result<(), ImageError> {
        if !kind.is_dir() {
            return Err(ImageError::Layer("invalid tar entry: the root of the layer is not a directory".to_owned()));
        }
        let at = openat(&self.root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|fd| {
                rustix::fs::fchown(&fd, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
                rustix::fs::fchmod(&fd, attributes.mode)
            });
        at.map_err(|error| ImageError::Layer(format!("cannot set up the layer's root: {error}")))?;
        self.directories.push((Vec::new(), attributes.times.clone()));
        Ok(())
    }

    /// The directory at `path` inside the root, made if an archive left it out.
    fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == path
        {
            return Ok(fd);
        }
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let mut end = 0;
        while end < path.len() {
            end = path[end + 1..].iter().position(|&b| b == b'/').map_or(path.len(), |at| end + 1 + at);
            let (above, name) = match path[..end].iter().rposition(|&b| b == b'/') {
                Some(at) => (&path[..at], &path[at + 1..end]),
                None => (&b""[..], &path[..end]),
            };
            match mkdirat(self.resolve(above)?, name, DIRECTORY_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        self.resolve(path)
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        loop {
            let opened = openat2(
                &self.root,
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            );
            match opened {
                // The kernel could not rule out a rename meanwhile; it says so to be asked again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Removes what an earlier entry left at this name, unless a directory meets a directory.
    fn make_way(&self, parent: BorrowedFd<'_>, name: &[u8], is_directory: bool) -> Result<Covered, Failure> {
        let there = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Covered::Nothing),
            found => found?,
        };
        let kind = FileType::from_raw_mode(there.st_mode);
        if kind == FileType::Directory {
            if is_directory {
                return Ok(Covered::Directory);
            }
            remove_tree(parent, name)?;
            return Ok(Covered::Other);
        }
        unlinkat(parent, name, AtFlags::empty())?;
        Ok(if kind == FileType::CharacterDevice && there.st_rdev == 0 { Covered::Whiteout } else { Covered::Other })
    }

    fn directory(&self, parent: BorrowedFd<'_>, name: &[u8], covered: &Covered) -> Result<Made, Failure> {
        if *covered != Covered::Directory {
            mkdirat(parent, name, DIRECTORY_MODE)?;
        }
        if *covered == Covered::Whiteout {
            // Removed below and made anew here: nothing from below may show through.
            set_xattr(parent, name, "trusted.overlay.opaque", b"y")?;
        }
        Ok(Made::Whole)
    }

    fn other(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        kind: EntryType,
        entry: &mut tar::Entry<'_, impl Read>,
        raw_name: &[u8],
    ) -> Result<Made, Failure> {
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let file = openat(
                    parent,
                    name,
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::from_raw_mode(0o600),
                )?;
                let written = copy(entry, &mut std::fs::File::from(file), &mut self.buffer)?;
                if written != entry.size() {
                    return Err(Failure::Tar(io::ErrorKind::UnexpectedEof.into()));
                }
                self.size_bytes += written;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(&*target, parent, name)?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(parent, name, &target, raw_name)?;
                return Ok(Made::Link);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let header = entry.header();
                let (file_type, device) = match kind {
                    EntryType::Fifo => (FileType::Fifo, 0),
                    _ => {
                        let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
                        let device = makedev(number(header.device_major()), number(header.device_minor()));
                        let char_device = kind == EntryType::Char;
                        (if char_device { FileType::CharacterDevice } else { FileType::BlockDevice }, device)
                    }
                };
                mknodat(parent, name, file_type, Mode::from_raw_mode(0o600), device)?;
            }
            other => {
                tracing::debug!(kind = ?other, name = %lossy(raw_name), "tar entry of unknown kind left out");
                return Ok(Made::Nothing);
            }
        }
        Ok(Made::Whole)
    }

    fn hard_link(&self, parent: BorrowedFd<'_>, name: &[u8], target: &[u8], raw_name: &[u8]) -> Result<(), Failure> {
        let refused = |why: &str| {
            Failure::Refused(format!("invalid hardlink {:?} -> {:?}: {why}", lossy(raw_name), lossy(target)))
        };
        let components = components(target).ok_or_else(|| refused("the target is outside of the layer"))?;
        let (target_name, above) = components.split_last().ok_or_else(|| refused("the target is the layer's root"))?;
        let missing = |error| match error {
            Errno::NOENT => refused("the layer has no such file"),
            error => Failure::System(error),
        };
        let above = self.resolve(&above.join(&b'/')).map_err(missing)?;
        linkat(&above, *target_name, parent, name, AtFlags::empty()).map_err(missing)
    }

    fn finish(&self) -> Result<(), ImageError> {
        for (path, times) in self.directories.iter().rev() {
            // A directory that a later entry replaced has no times to set.
            let Ok(directory) = self.resolve(path) else { continue };
            let reopened =
                openat(&directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            reopened
                .and_then(|fd| rustix::fs::futimens(&fd, times))
                .map_err(|error| ImageError::Layer(format!("cannot set the times of {:?}: {error}", lossy(path))))?;
        }
        Ok(())
    }
}

/// What was at an entry's name before.
#[derive(PartialEq, Eq)]
enum Covered {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

#[derive(PartialEq, Eq)]
enum Made {
    /// A new inode, which gets the entry's attributes.
    Whole,
    /// Another name of an inode that has its attributes.
    Link,
    Nothing,
}

enum Failure {
    System(Errno),
    Tar(io::Error),
    Refused(String),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

/// Lexically cleaned components; `None` if the name climbs above the root. A leading slash is dropped, as Docker does.
fn components(name: &[u8]) -> Option<Vec<&[u8]>> {
    let mut components = Vec::new();
    for component in name.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop()?;
            }
            component if component.contains(&0) => return None,
            component => components.push(component),
        }
    }
    Some(components)
}

fn attributes(entry: &mut tar::Entry<'_, impl Read>) -> Result<Attributes, ImageError> {
    let mut xattrs = Vec::new();
    let mut fine_mtime = None;
    if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
        for extension in extensions {
            let extension = extension.map_err(broken)?;
            let Ok(key) = extension.key() else { continue };
            if let Some(name) = key.strip_prefix(XATTR_RECORD) {
                if !RESERVED_XATTRS.iter().any(|reserved| name.starts_with(reserved)) {
                    xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
                }
            } else if key == "mtime" {
                fine_mtime = extension.value().ok().and_then(parse_time);
            }
        }
    }
    let header = entry.header();
    let id = |id: io::Result<u64>| u32::try_from(id.unwrap_or(0)).unwrap_or(0);
    let coarse = Timespec { tv_sec: header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), tv_nsec: 0 };
    let mtime = fine_mtime.unwrap_or(coarse);
    Ok(Attributes {
        uid: id(header.uid()),
        gid: id(header.gid()),
        mode: Mode::from_raw_mode(header.mode().unwrap_or(0o644) & 0o7777),
        times: Timestamps { last_access: mtime, last_modification: mtime },
        xattrs,
    })
}

/// A PAX time: decimal seconds with a fraction.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut tv_sec: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let mut tv_nsec: i64 = digits.parse().ok()?;
    if seconds.starts_with('-') && tv_nsec > 0 {
        tv_sec -= 1;
        tv_nsec = 1_000_000_000 - tv_nsec;
    }
    Some(Timespec { tv_sec, tv_nsec: tv_nsec as _ })
}

/// Owner first: changing it clears set-id bits and file capabilities, which come after.
fn set_attributes(
    parent: BorrowedFd<'_>,
    name: &[u8],
    is_symlink: bool,
    attributes: &Attributes,
) -> Result<(), Failure> {
    let owner = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
    chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    for (key, value) in &attributes.xattrs {
        set_xattr(parent, name, key, value)?;
    }
    if !is_symlink {
        // Not a symlink, by the lines above: nothing else writes in this directory.
        chmodat(parent, name, attributes.mode, AtFlags::empty())?;
    }
    utimensat(parent, name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn set_xattr(parent: BorrowedFd<'_>, name: &[u8], key: &str, value: &[u8]) -> Result<(), Failure> {
    // There is no lsetxattrat before Linux 6.13; through the directory's own descriptor it is the same.
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    match lsetxattr(&*path, key, value, XattrFlags::empty()) {
        // What the file system cannot keep is left out, as moby does; user.* is not possible on symlinks and devices.
        Err(Errno::NOTSUP | Errno::PERM) if !key.starts_with("trusted.overlay.") => {
            tracing::debug!(key, name = %lossy(name), "xattr not supported here");
            Ok(())
        }
        done => Ok(done?),
    }
}

fn whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failure> {
    if name == OPAQUE {
        let mut path = format!("/proc/self/fd/{}", parent.as_raw_fd()).into_bytes();
        path.extend_from_slice(b"/.");
        rustix::fs::setxattr(&*path, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
        return Ok(());
    }
    if name.starts_with(WHITEOUT_META) {
        return Ok(());
    }
    let hidden = &name[WHITEOUT.len()..];
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(Failure::Refused(format!("invalid tar entry: whiteout {:?} hides nothing", lossy(name))));
    }
    match statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)?),
        // The same layer removes what is below and makes it anew.
        Ok(there) if FileType::from_raw_mode(there.st_mode) == FileType::Directory => {
            set_xattr(parent, hidden, "trusted.overlay.opaque", b"y")
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a directory that an entry of another kind replaces.
fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failure> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    // std's own walk is by descriptors and follows no symlink.
    std::fs::remove_dir_all(Path::new(OsStr::from_bytes(&path))).map_err(Failure::Tar)
}

fn copy(from: &mut impl Read, to: &mut std::fs::File, buffer: &mut [u8]) -> Result<u64, Failure> {
    let mut total = 0;
    loop {
        let n = match from.read(buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::Tar(error)),
        };
        io::Write::write_all(to, &buffer[..n])
            .map_err(|error| Failure::System(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        total += n as u64;
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
