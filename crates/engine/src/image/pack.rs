//! A directory becomes a layer's tar: the other way of `unpack`.

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

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
pub(super) fn upper_dir(root: &Path, output: impl Write) -> Result<(), ImageError> {
    let mut builder = tar::Builder::new(output);
    let mut links = std::collections::BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let absolute = root.join(&relative);
        let meta = fs::symlink_metadata(&absolute).map_err(ImageError::io("read", &absolute))?;
        if !relative.as_os_str().is_empty() {
            append(&mut builder, root, &relative, &meta, &mut links).map_err(ImageError::io("pack", &absolute))?;
        }
        if meta.is_dir() {
            let mut children = Vec::new();
            for entry in fs::read_dir(&absolute).map_err(ImageError::io("read", &absolute))? {
                children.push(relative.join(entry.map_err(ImageError::io("read", &absolute))?.file_name()));
            }
            children.sort();
            pending.extend(children.into_iter().rev());
        }
    }
    builder.finish().map_err(ImageError::io("pack", root))
}

type Links = std::collections::BTreeMap<(u64, u64), PathBuf>;

fn append(
    builder: &mut tar::Builder<impl Write>,
    root: &Path,
    relative: &Path,
    meta: &fs::Metadata,
    links: &mut Links,
) -> io::Result<()> {
    let absolute = root.join(relative);
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
    append_xattrs(builder, &absolute)?;
    if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut header, directory_name(relative), io::empty())?;
        if is_opaque(&absolute) {
            append_empty(builder, &relative.join(".wh..wh..opq"), meta)?;
        }
        return Ok(());
    }
    if meta.nlink() > 1 {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            header.set_entry_type(tar::EntryType::Link);
            return builder.append_link(&mut header, relative, first);
        }
        links.insert((meta.dev(), meta.ino()), relative.to_owned());
    }
    if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        return builder.append_link(&mut header, relative, fs::read_link(&absolute)?);
    }
    if kind.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(meta.len());
        // A file that is being written may shrink or grow; the header has said a size already.
        let data = File::open(&absolute)?.take(meta.len()).chain(io::repeat(0)).take(meta.len());
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
    matches!(rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value[..]), Ok(1)) && value[0] == b'y'
}

fn append_xattrs(builder: &mut tar::Builder<impl Write>, path: &Path) -> io::Result<()> {
    // Files carry few; 64 KiB is the kernel's own limit of a list (XATTR_LIST_MAX).
    let mut names = vec![0; 65536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return Ok(()) };
    let mut records = Vec::new();
    for name in names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let Ok(key) = std::str::from_utf8(name) else { continue };
        if key != "security.capability" && !key.starts_with("user.") || key.starts_with("user.overlay.") {
            continue; // what moby keeps; labels of the host and overlayfs's own are not the image's
        }
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        records.push((format!("SCHILY.xattr.{key}"), value));
    }
    if records.is_empty() {
        return Ok(());
    }
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
}
