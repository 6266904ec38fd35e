//! The local driver's options, and the mounts they mean.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::ToSocketAddrs as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::{Result, VolumeError};

type Options = BTreeMap<String, String>;

/// Refuses what the driver cannot do, in moby's words (`volume/local`).
pub(super) fn validate(options: &Options) -> Result<()> {
    const VALID: [&str; 4] = ["type", "device", "o", "size"];
    const MANDATORY: [(&str, &[&str]); 3] = [("device", &["type"]), ("type", &["device"]), ("o", &["device", "type"])];
    if let Some(unknown) = options.keys().find(|key| !VALID.contains(&key.as_str())) {
        return Err(VolumeError::Invalid(format!("invalid option: {unknown:?}")));
    }
    if options.contains_key("size") {
        return Err(VolumeError::Invalid("quota size requested but no quota support".to_owned()));
    }
    for (option, needed) in MANDATORY {
        if options.contains_key(option)
            && let Some(missing) = needed.iter().find(|&&needed| !options.contains_key(needed))
        {
            return Err(VolumeError::Invalid(format!("missing required option: {missing:?}")));
        }
    }
    Ok(())
}

/// Mounts what the options say on `target`, unless something is mounted there. May take long: it may be a network.
pub(super) fn mount_options(options: &Options, target: &Path) -> Result<()> {
    if options.is_empty() || is_mount_point(target) {
        return Ok(());
    }
    let get = |key: &str| options.get(key).map_or("", String::as_str);
    let failed = |reason: String| VolumeError::Mount { path: target.to_owned(), reason };
    let mut parsed = Parsed::read(get("o"));
    if get("type").starts_with("nfs") || get("type") == "cifs" {
        parsed.resolve_address().map_err(failed)?;
    }
    let described = || {
        format!("failed to mount local volume: mount {}:{}, data: {}", get("device"), target.display(), parsed.data())
    };
    let data = CString::new(parsed.data()).map_err(|_| failed("an option holds a zero byte".to_owned()))?;
    mount(get("device"), target, get("type"), parsed.flags, data.as_c_str())
        .map_err(|error| failed(format!("{}: {}", described(), text(error))))?;
    if !parsed.propagation.is_empty() {
        mount_change(target, parsed.propagation)
            .map_err(|error| failed(format!("{}: {}", described(), text(error))))?;
    }
    Ok(())
}

pub(super) fn unmount_options(options: &Options, target: &Path) -> Result<()> {
    if options.is_empty() || !is_mount_point(target) {
        return Ok(());
    }
    unmount(target, UnmountFlags::DETACH).map_err(|error| VolumeError::Mount {
        path: target.to_owned(),
        reason: format!("cannot unmount: {}", text(error)),
    })
}

/// Whether something is mounted right here.
pub(super) fn is_mount_point(path: &Path) -> bool {
    statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The kernel's words as Go has them: without a number.
fn text(error: rustix::io::Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// An `o=` string: what are flags, what the file system reads itself.
struct Parsed {
    flags: MountFlags,
    propagation: MountPropagationFlags,
    data: Vec<String>,
}

impl Parsed {
    fn read(text: &str) -> Self {
        let mut parsed =
            Self { flags: MountFlags::empty(), propagation: MountPropagationFlags::empty(), data: Vec::new() };
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (flag, set) = match option {
                "defaults" | "async" => continue,
                "ro" => (MountFlags::RDONLY, true),
                "rw" => (MountFlags::RDONLY, false),
                "bind" => (MountFlags::BIND, true),
                "rbind" => (MountFlags::BIND | MountFlags::REC, true),
                "nosuid" => (MountFlags::NOSUID, true),
                "suid" => (MountFlags::NOSUID, false),
                "nodev" => (MountFlags::NODEV, true),
                "dev" => (MountFlags::NODEV, false),
                "noexec" => (MountFlags::NOEXEC, true),
                "exec" => (MountFlags::NOEXEC, false),
                "noatime" => (MountFlags::NOATIME, true),
                "atime" => (MountFlags::NOATIME, false),
                "nodiratime" => (MountFlags::NODIRATIME, true),
                "diratime" => (MountFlags::NODIRATIME, false),
                "relatime" => (MountFlags::RELATIME, true),
                "norelatime" => (MountFlags::RELATIME, false),
                "strictatime" => (MountFlags::STRICTATIME, true),
                "sync" => (MountFlags::SYNCHRONOUS, true),
                "dirsync" => (MountFlags::DIRSYNC, true),
                other => {
                    match propagation(other) {
                        Some(propagation) => parsed.propagation |= propagation,
                        None => parsed.data.push(other.to_owned()),
                    }
                    continue;
                }
            };
            parsed.flags.set(flag, set);
        }
        parsed
    }

    fn data(&self) -> String {
        self.data.join(",")
    }

    /// The kernel takes an address where users write a name (`mount.nfs` resolves it for them).
    fn resolve_address(&mut self) -> Result<(), String> {
        let Some(option) = self.data.iter_mut().find(|option| option.starts_with("addr=")) else { return Ok(()) };
        let name = &option["addr=".len()..];
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Ok(());
        }
        let addresses = (name, 0)
            .to_socket_addrs()
            .map_err(|error| format!("error resolving passed in network volume address: {name}: {error}"))?;
        // As Go's `ResolveIPAddr("ip", …)`.
        let address = addresses
            .min_by_key(std::net::SocketAddr::is_ipv6)
            .ok_or_else(|| format!("error resolving passed in network volume address: {name}"))?;
        *option = format!("addr={}", address.ip());
        Ok(())
    }
}

/// What a word such as `rslave` means for mount(2).
pub(crate) fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let rec = MountPropagationFlags::REC;
    Some(match option {
        "private" => MountPropagationFlags::PRIVATE,
        "rprivate" => MountPropagationFlags::PRIVATE | rec,
        "shared" => MountPropagationFlags::SHARED,
        "rshared" => MountPropagationFlags::SHARED | rec,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "rslave" => MountPropagationFlags::DOWNSTREAM | rec,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        "runbindable" => MountPropagationFlags::UNBINDABLE | rec,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn options_are_checked() {
        validate(&options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")])).unwrap();
        let refused = |pairs: &[(&str, &str)]| validate(&options(pairs)).unwrap_err().to_string();
        assert_eq!(refused(&[("kind", "x")]), "invalid option: \"kind\"");
        assert_eq!(refused(&[("type", "tmpfs")]), "missing required option: \"device\"");
        assert_eq!(refused(&[("size", "1g")]), "quota size requested but no quota support");
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let parsed = Parsed::read("bind,ro,nosuid,size=1m,rw,mode=700,rshared");
        assert_eq!(parsed.flags, MountFlags::BIND | MountFlags::NOSUID);
        assert_eq!(parsed.data(), "size=1m,mode=700");
        assert_eq!(parsed.propagation, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    }

    #[test]
    fn what_nfs_reads_is_passed_on_with_its_server_as_an_address() {
        let data = |text: &str| {
            let mut parsed = Parsed::read(text);
            parsed.resolve_address().map(|()| parsed.data())
        };
        assert_eq!(
            data("addr=localhost,rw,nfsvers=4.1,soft,nolock"),
            Ok("addr=127.0.0.1,nfsvers=4.1,soft,nolock".into())
        );
        assert_eq!(data("addr=10.0.0.9,ro,clientaddr=localhost"), Ok("addr=10.0.0.9,clientaddr=localhost".into()));
        assert_eq!(data("vers=3"), Ok("vers=3".into()));
        assert!(
            data("addr=no.such.host.invalid").unwrap_err().contains("network volume address: no.such.host.invalid")
        );
    }
}
