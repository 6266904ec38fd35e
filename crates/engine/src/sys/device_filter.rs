//! bpf(2): loads a program that decides on devices and attaches it to a cgroup v2 directory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct bpf_insn` in memory order.
type Instruction = [u8; 8];

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Beside the programs of others; an access needs the consent of all.
const ALLOW_MULTI: u32 = 1 << 1;

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what is left out as zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// The group keeps the program until it is removed.
pub(crate) fn attach(group: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let loaded = load(program)?;
    let number = |fd: i32| u32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let attributes = Attach {
        target: number(group.as_raw_fd())?,
        program: number(loaded.as_raw_fd())?,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: bpf(2) reads as many bytes as said behind the pointer, alive over the call; both descriptors are open.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, std::mem::size_of::<Attach>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    // A copy with the alignment the kernel's struct has; an array of bytes promises none.
    let instructions: Vec<u64> = program.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let address = |pointer: *const u8| u64::try_from(pointer.addr()).expect("an address has at most 64 bits");
    let attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        instructions: address(instructions.as_ptr().cast()),
        // It calls no function of the kernel's that asks for a license.
        license: address(c"Apache-2.0".as_ptr().cast()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: bpf(2) reads as many bytes as said behind the pointer, `count` instructions and a C string behind the
    // addresses in it, all alive over the call, and keeps no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, std::mem::size_of::<Load>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made the descriptor (close-on-exec) and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use serde_json::json;

    use super::*;

    /// A group of its own and a node of a real block device; both gone with it.
    struct Scene {
        group: PathBuf,
        folder: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Option<Self> {
            let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
                .into_iter()
                .map(Path::new)
                .find(|mount| mount.join("cgroup.controllers").exists())?;
            let group = mount.join(format!("skep-device-filter-{}", std::process::id()));
            std::fs::create_dir(&group).unwrap();
            let scene = Self { group, folder: tempfile::tempdir().unwrap() };
            let disk = std::fs::read_dir("/sys/block").unwrap().next()?.unwrap().path();
            let numbers = std::fs::read_to_string(disk.join("dev")).unwrap();
            let (major, minor) = numbers.trim().split_once(':').unwrap();
            let made = rustix::fs::mknodat(
                rustix::fs::CWD,
                scene.folder.path().join("disk"),
                rustix::fs::FileType::BlockDevice,
                0o600.into(),
                rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap()),
            );
            made.unwrap();
            Some(scene)
        }

        /// A process that joins the group and opens both devices.
        fn try_devices(&self) -> String {
            let script = "echo $$ > $0/cgroup.procs && for f in /dev/null $1; do true < $f && echo open; done 2>&1; :";
            let output = Command::new("/bin/busybox")
                .args(["sh", "-c", script])
                .args([&self.group, &self.folder.path().join("disk")])
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.group);
        }
    }

    #[test]
    fn the_kernel_refuses_a_disk_with_the_program_and_opens_it_without() {
        let Some(scene) = Scene::new() else {
            // A host without cgroup v2 or without a disk has nothing to try it on.
            return;
        };
        assert_eq!(scene.try_devices(), "open\nopen\n");
        let rules = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "access": "m" },
            { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
        ]);
        let program = crate::spec::device_program::assemble(&serde_json::from_value::<Vec<_>>(rules).unwrap()).unwrap();
        let group = std::fs::File::open(&scene.group).unwrap();
        attach(group.as_fd(), &program).unwrap();
        let said = scene.try_devices();
        let lines: Vec<_> = said.lines().collect();
        assert!(lines.len() == 2 && lines[0] == "open" && lines[1].ends_with("Operation not permitted"), "{said}");
    }

    #[test]
    fn a_directory_that_is_no_group_is_refused() {
        let program = crate::spec::device_program::assemble(&[]).unwrap();
        let folder = std::fs::File::open("/tmp").unwrap();
        assert!(attach(folder.as_fd(), &program).is_err());
    }
}
