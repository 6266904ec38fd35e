//! Docker's capability words to a bit set.

use std::str::FromStr;

use caps::Capability;

use crate::error::{EngineError, Result};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP (moby `caps.DefaultCapabilities`).
pub(crate) const DEFAULT: u64 = 0xa804_25fb;

/// All that this kernel has, as far as we know their names.
pub(crate) fn all() -> u64 {
    caps::runtime::thread_all_supported().iter().fold(0, |set, capability| set | capability.bitmask())
}

/// What a container is left with (moby `caps.TweakCapabilities`).
pub(crate) fn resolve(add: &[String], drop: &[String], privileged: bool) -> Result<u64> {
    if privileged {
        return Ok(all());
    }
    let of = |list: &str, error: &EngineError| EngineError::Invalid(format!("invalid {list}: {error}"));
    let is_all = |names: &[String]| names.iter().any(|n| n.eq_ignore_ascii_case("ALL"));
    let mut set = if is_all(add) {
        all()
    } else if is_all(drop) {
        0
    } else {
        DEFAULT
    };
    for name in drop.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        set &= !parse(name).map_err(|error| of("CapDrop", &error))?;
    }
    for name in add.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        set |= parse(name).map_err(|error| of("CapAdd", &error))?;
    }
    Ok(set)
}

pub(crate) fn parse(name: &str) -> Result<u64> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    Capability::from_str(&full)
        .map(|capability| capability.bitmask())
        .map_err(|_| EngineError::Invalid(format!("unknown capability: {full:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_and_drops_as_docker_does() {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(resolve(&[], &[], false).unwrap(), DEFAULT);
        assert_eq!(DEFAULT.count_ones(), 14);
        assert_eq!(resolve(&words(&["NET_ADMIN"]), &[], false).unwrap(), DEFAULT | 1 << 12);
        assert_eq!(resolve(&words(&["CAP_CHOWN"]), &words(&["ALL"]), false).unwrap(), 1);
        assert_eq!(resolve(&[], &words(&["all"]), false).unwrap(), 0);
        assert_eq!(resolve(&words(&["ALL"]), &words(&["MKNOD"]), false).unwrap(), all() & !(1 << 27));
        let refused = |add: &[&str], drop: &[&str]| resolve(&words(add), &words(drop), false).unwrap_err().to_string();
        assert_eq!(refused(&["FLYING"], &[]), "invalid CapAdd: unknown capability: \"CAP_FLYING\"");
        assert_eq!(refused(&[], &["CAP_flying"]), "invalid CapDrop: unknown capability: \"CAP_FLYING\"");
    }
}
