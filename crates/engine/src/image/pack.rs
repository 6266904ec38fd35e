//! A directory becomes a layer's tar: the other way of `unpack`.

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::ImageError;

const BLOCK_BYTES: usize = 512;

/// The tar of one executable file owned by root: the same bytes on every host for the same content.
pub(super) fn single_file(name: &str, path: &Path) -> Result<impl Read + Send + 'static, ImageError> {
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    let size = file.metadata().map_err(ImageError::io("read", path))?.len();
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(ImageError::io("name", path))?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    let padding = (BLOCK_BYTES - usize::try_from(size % 512).unwrap_or(0)) % BLOCK_BYTES;
    let end = vec![0; padding + 2 * BLOCK_BYTES];
    Ok(Cursor::new(header.as_bytes().to_vec()).chain(file.take(size)).chain(Cursor::new(end)))
}

/// Writes an overlay upper directory as a layer: deletions become whiteouts. Sorted, so that the same tree gives the same tar.
///
/// The container may run and change the tree meanwhile. Every entry is therefore opened once, below the root and through no
/// symlink, and everything about it is asked of that descriptor: a directory swapped for a symlink leads nowhere.
pub(super) fn upper_dir(root: &Path, output: impl Write) -> Result<(), ImageError> {
    let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let top = top.map_err(|error| ImageError::io("open", root)(error.into()))?;
    let mut builder = tar::Builder::new(output);
    let mut links = Links::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let failed = || ImageError::io("pack", root.join(&relative));
        let Some(entry) = Entry::open(&top, &relative).map_err(failed())? else { continue };
        if !relative.as_os_str().is_empty() {
            append(&mut builder, &relative, &entry, &mut links).map_err(failed())?;
        }
        if entry.meta.is_dir() {
            let mut children = Vec::new();
            for child in fs::read_dir(&entry.path).map_err(failed())? {
                children.push(relative.join(child.map_err(failed())?.file_name()));
            }
            children.sort();
            pending.extend(children.into_iter().rev());
        }
    }
    builder.finish().map_err(ImageError::io("pack", root))
}

type Links = std::collections::BTreeMap<(u64, u64), PathBuf>;

/// One file of the tree, held by a descriptor.
struct Entry {
    fd: OwnedFd,
    /// The descriptor's own path under `/proc`, which no rename can turn to another file.
    path: PathBuf,
    meta: fs::Metadata,
}

impl Entry {
    /// `None` if it went meanwhile.
    fn open(top: &OwnedFd, relative: &Path) -> io::Result<Option<Self>> {
        let name = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = loop {
            match openat2(top, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
                Ok(fd) => break fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let meta = fs::metadata(&path)?;
        Ok(Some(Self { fd, path, meta }))
    }

    fn link_target(&self) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.fd, c"", Vec::new())?;
        Ok(std::ffi::OsStr::from_bytes(target.as_bytes()).into())
    }
}

fn append(builder: &mut tar::Builder<impl Write>, relative: &Path, entry: &Entry, links: &mut Links) -> io::Result<()> {
    let meta = &entry.meta;
    let kind = meta.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    if kind.is_char_device() && meta.rdev() == 0 {
        let mut name = std::ffi::OsString::from(".wh.");
        name.push(relative.file_name().unwrap_or_default());
        return append_empty(builder, &relative.with_file_name(name), meta);
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(meta);
    header.set_mode(meta.mode() & 0o7777);
    header.set_size(0);
    header.set_username("")?;
    header.set_groupname("")?;
    if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        return builder.append_link(&mut header, relative, entry.link_target()?);
    }
    if !kind.is_dir() && meta.nlink() > 1 {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            header.set_entry_type(tar::EntryType::Link);
            return builder.append_link(&mut header, relative, first);
        }
        links.insert((meta.dev(), meta.ino()), relative.to_owned());
    }
    append_xattrs(builder, &entry.path)?;
    if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut header, directory_name(relative), io::empty())?;
        if is_opaque(&entry.path) {
            append_empty(builder, &relative.join(".wh..wh..opq"), meta)?;
        }
        return Ok(());
    }
    if kind.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(meta.len());
        // A file that is being written may shrink or grow; the header has said a size already.
        let data = File::open(&entry.path)?.take(meta.len()).chain(io::repeat(0)).take(meta.len());
        return builder.append_data(&mut header, relative, data);
    }
    header.set_entry_type(if kind.is_fifo() {
        tar::EntryType::Fifo
    } else if kind.is_block_device() {
        tar::EntryType::Block
    } else {
        tar::EntryType::Char
    });
    header.set_device_major(rustix::fs::major(meta.rdev()))?;
    header.set_device_minor(rustix::fs::minor(meta.rdev()))?;
    builder.append_data(&mut header, relative, io::empty())
}

fn directory_name(relative: &Path) -> PathBuf {
    let mut name = relative.as_os_str().to_owned();
    name.push("/");
    name.into()
}

fn append_empty(builder: &mut tar::Builder<impl Write>, name: &Path, meta: &fs::Metadata) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    builder.append_data(&mut header, name, io::empty())
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    matches!(rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..]), Ok(1)) && value[0] == b'y'
}

fn append_xattrs(builder: &mut tar::Builder<impl Write>, path: &Path) -> io::Result<()> {
    // Files carry few; 64 KiB is the kernel's own limit of a list (XATTR_LIST_MAX).
    let mut names = vec![0; 65536];
    let Ok(length) = rustix::fs::listxattr(path, &mut names[..]) else { return Ok(()) };
    let mut records = Vec::new();
    for name in names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let Ok(key) = std::str::from_utf8(name) else { continue };
        if key != "security.capability" && !key.starts_with("user.") || key.starts_with("user.overlay.") {
            continue; // what moby keeps; labels of the host and overlayfs's own are not the image's
        }
        let mut value = vec![0; 65536];
        let length = rustix::fs::getxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        records.push((format!("SCHILY.xattr.{key}"), value));
    }
    if records.is_empty() {
        return Ok(());
    }
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
}
