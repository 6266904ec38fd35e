//! Tars as layers have them, and tars that want out. As root, on a real file system.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use tar::{Builder, Header};

use super::*;

struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Names are written raw: the tar crate itself refuses bad ones.
    fn header(kind: EntryType, name: &str, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn file(mut self, name: &str, content: &str) -> Self {
        self.0
            .append(&Self::header(EntryType::Regular, name, 0o644, content.len() as u64), content.as_bytes())
            .unwrap();
        self
    }

    fn node(mut self, kind: EntryType, name: &str, mode: u32) -> Self {
        self.0.append(&Self::header(kind, name, mode, 0), io::empty()).unwrap();
        self
    }

    fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name, 0o777, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, io::empty()).unwrap();
        self
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Unpacks into `dir/layer`; `dir/outside` is what must stay as it is.
fn unpacked(tar: &[u8]) -> (tempfile::TempDir, Result<u64, ImageError>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("layer")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
    let outcome = unpack(tar, &dir.path().join("layer"));
    assert_eq!(fs::read_to_string(dir.path().join("outside/secret")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing beside the layer");
    assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 1, "nothing beside the secret");
    (dir, outcome)
}

#[test]
fn every_kind_of_entry_is_made_as_it_is_told() {
    let tar = Tar::new()
        .node(EntryType::Directory, "./", 0o755)
        .node(EntryType::Directory, "dir/", 0o2750)
        .file("dir/file", "honey")
        .link(EntryType::Symlink, "dir/link", "../somewhere/else")
        .link(EntryType::Link, "hard", "dir/file")
        .node(EntryType::Fifo, "fifo", 0o600)
        .file("no/parents/here", "x");
    let mut tar = tar;
    let mut setuid = Tar::header(EntryType::Regular, "su", 0o4755, 1);
    setuid.set_uid(12);
    setuid.set_gid(34);
    setuid.set_cksum();
    tar.0.append(&setuid, &b"s"[..]).unwrap();
    let mut null = Tar::header(EntryType::Char, "null", 0o666, 0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    null.set_cksum();
    tar.0.append(&null, io::empty()).unwrap();

    let (dir, outcome) = unpacked(&tar.done());
    assert_eq!(outcome.unwrap(), 7);
    let at = |name: &str| fs::symlink_metadata(dir.path().join("layer").join(name)).unwrap();
    assert_eq!((at("dir").mode() & 0o7777, at("dir").mtime()), (0o2750, 1_000_000));
    assert_eq!(at("dir/file").mtime(), 1_000_000);
    assert_eq!(fs::read_link(dir.path().join("layer/dir/link")).unwrap(), Path::new("../somewhere/else"));
    assert_eq!(at("hard").ino(), at("dir/file").ino());
    assert!(at("fifo").file_type().is_fifo());
    assert_eq!((at("su").mode() & 0o7777, at("su").uid(), at("su").gid()), (0o4755, 12, 34));
    assert_eq!((at("null").file_type().is_char_device(), at("null").rdev()), (true, makedev(1, 3)));
    assert_eq!(at("no/parents/here").len(), 1);
}

#[test]
fn whiteouts_become_overlayfs_ones() {
    let tar = Tar::new()
        .file("etc/.wh.passwd", "")
        .file("var/.wh..wh..opq", "")
        .file("var/new", "n")
        .file(".wh..wh.plnk", "")
        .file(".wh.again", "")
        .node(EntryType::Directory, "again/", 0o755)
        .file("kept", "k")
        .file(".wh.kept", "")
        .done();
    let (dir, outcome) = unpacked(&tar);
    outcome.unwrap();
    let layer = dir.path().join("layer");
    let hidden = fs::symlink_metadata(layer.join("etc/passwd")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    let opaque = |name: &str| {
        let mut value = [0; 4];
        rustix::fs::lgetxattr(layer.join(name), "trusted.overlay.opaque", &mut value[..])
            .is_ok_and(|n| &value[..n] == b"y")
    };
    assert!(opaque("var") && opaque("again") && !opaque("etc"));
    assert_eq!(fs::read_to_string(layer.join("kept")).unwrap(), "k");
    assert!(!layer.join(".wh..wh.plnk").exists());
}

#[test]
fn xattrs_are_kept_but_not_overlayfs_own() {
    // cap_net_bind_service=ep, revision 2
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("mtime", b"12.5"),
        ])
        .file("ping", "#!")
        .done();
    let (dir, outcome) = unpacked(&tar);
    outcome.unwrap();
    let path = dir.path().join("layer/ping");
    let mut value = [0; 64];
    let n = rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]).unwrap();
    assert_eq!(&value[..n], capability);
    assert!(rustix::fs::lgetxattr(&path, "trusted.overlay.redirect", &mut value[..]).is_err());
    let meta = fs::metadata(path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (12, 500_000_000));
}

#[test]
fn names_that_climb_out_are_refused() {
    for name in ["../outside/secret", "a/../../outside/secret", "..", "a/b/../../../x"] {
        let (_dir, outcome) = unpacked(&Tar::new().file(name, "evil").done());
        assert!(outcome.unwrap_err().to_string().contains("outside of the layer"), "{name}");
    }
    for name in [".wh...", ".wh..", ".wh."] {
        let (_dir, outcome) = unpacked(&Tar::new().file(name, "").done());
        assert!(outcome.unwrap_err().to_string().contains("hides nothing"), "{name}");
    }
}

#[test]
fn absolute_names_stay_inside() {
    let (dir, outcome) = unpacked(&Tar::new().file("/etc/hosts", "x").done());
    outcome.unwrap();
    assert!(dir.path().join("layer/etc/hosts").is_file());
}

#[test]
fn a_planted_symlink_leads_nowhere() {
    for target in ["../outside", "/", "../../../../../../../../tmp", "/proc/self/root"] {
        let tar = Tar::new().link(EntryType::Symlink, "way", target).file("way/secret", "evil").done();
        let (dir, outcome) = unpacked(&tar);
        // Where the link's target exists inside the root it is written there, else it is an error.
        if outcome.is_ok() {
            assert!(dir.path().join("layer").join(target.trim_start_matches(['.', '/'])).join("secret").exists());
        }
    }
    // Through the file itself: the link is replaced, not followed.
    let outside = Path::new("../outside/secret").display().to_string();
    let tar = Tar::new().link(EntryType::Symlink, "file", &outside).file("file", "evil").done();
    let (dir, outcome) = unpacked(&tar);
    outcome.unwrap();
    assert!(fs::symlink_metadata(dir.path().join("layer/file")).unwrap().is_file());
    // A whiteout through a link must not make its device outside.
    let tar = Tar::new().link(EntryType::Symlink, "way", "../outside").file("way/.wh.secret", "").done();
    let (_dir, _outcome) = unpacked(&tar);
    // Nor an opaque mark, nor attributes of a directory.
    let tar = Tar::new()
        .link(EntryType::Symlink, "way", "../outside")
        .node(EntryType::Directory, "way/", 0o777)
        .file("way/x", "x")
        .done();
    let (dir, outcome) = unpacked(&tar);
    outcome.unwrap();
    assert!(fs::symlink_metadata(dir.path().join("layer/way")).unwrap().is_dir());
}

#[test]
fn hard_links_stay_inside() {
    for target in ["../outside/secret", "/../outside/secret", "nowhere", "/etc/hostname"] {
        let (_dir, outcome) = unpacked(&Tar::new().link(EntryType::Link, "hard", target).done());
        assert!(outcome.unwrap_err().to_string().contains("invalid hardlink"), "{target}");
    }
    let tar =
        Tar::new().link(EntryType::Symlink, "way", "../outside").link(EntryType::Link, "hard", "way/secret").done();
    let (_dir, outcome) = unpacked(&tar);
    assert!(outcome.unwrap_err().to_string().contains("invalid hardlink"));
}

#[test]
fn later_entries_replace_earlier_ones() {
    let tar = Tar::new()
        .file("a/b/c", "1")
        .file("a", "file now")
        .node(EntryType::Directory, "d/", 0o755)
        .file("d/kept", "1")
        .node(EntryType::Directory, "d/", 0o700)
        .file("f", "1")
        .file("f", "2")
        .done();
    let (dir, outcome) = unpacked(&tar);
    outcome.unwrap();
    let layer = dir.path().join("layer");
    assert_eq!(fs::read_to_string(layer.join("a")).unwrap(), "file now");
    assert_eq!(fs::read_to_string(layer.join("f")).unwrap(), "2");
    assert!(layer.join("d/kept").exists());
    assert_eq!(fs::metadata(layer.join("d")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_truncated_tar_is_told() {
    let whole = Tar::new().file("file", &"x".repeat(5000)).file("other", "y").done();
    for length in [700, 3000, 5800] {
        let (_dir, outcome) = unpacked(&whole[..length]);
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("truncated"), "{length}: {text}");
    }
}
