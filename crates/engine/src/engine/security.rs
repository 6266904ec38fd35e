//! `--security-opt`, and what it and the capabilities make of a process.

use std::path::{Path, PathBuf};

use skep_model::container::HostConfig;

use super::Engine;
use crate::error::{EngineError, Result};
use crate::spec::limits;
use crate::supervisor::protocol::Security;

/// What `--security-opt` asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options<'a> {
    no_new_privileges: bool,
    unconfined: bool,
    /// A profile's JSON.
    profile: Option<&'a str>,
}

impl<'a> Options<'a> {
    pub(super) fn read(options: &'a [String]) -> Result<Self> {
        Self::read_on(options, Path::new("/sys/fs/selinux/enforce").exists())
    }

    /// A label on a host without SELinux asks for nothing, as in Docker.
    fn read_on(options: &'a [String], selinux: bool) -> Result<Self> {
        let mut read = Self::default();
        for option in options {
            if option == "no-new-privileges" {
                read.no_new_privileges = true;
                continue;
            }
            let invalid = || EngineError::Invalid(format!("invalid --security-opt 1: {option:?}"));
            let (key, value) = option.split_once(['=', ':']).ok_or_else(invalid)?;
            match (key, value) {
                ("no-new-privileges", "true" | "1" | "t" | "T" | "True" | "TRUE") => read.no_new_privileges = true,
                ("no-new-privileges", "false" | "0" | "f" | "F" | "False" | "FALSE") => read.no_new_privileges = false,
                ("no-new-privileges", _) => return Err(invalid()),
                ("seccomp", "unconfined") => (read.unconfined, read.profile) = (true, None),
                ("seccomp", "builtin" | "default") => (read.unconfined, read.profile) = (false, None),
                ("seccomp", profile) => (read.unconfined, read.profile) = (false, Some(profile)),
                // There is no profile of AppArmor, hence none to leave.
                ("label", "disable") | ("apparmor", "unconfined") => {}
                ("label", _) if !selinux => {}
                ("label" | "apparmor", _) => {
                    return Err(EngineError::NotImplemented(format!("--security-opt {option} is not supported yet")));
                }
                _ => return Err(EngineError::Invalid(format!("invalid --security-opt 2: {option:?}"))),
            }
        }
        Ok(read)
    }
}

/// Capabilities, filter and limits of a process; also of an exec, whose filter libcontainer would forget.
pub(super) fn security(engine: &Engine, host: &HostConfig, capabilities: u64, privileged: bool) -> Result<Security> {
    let options = Options::read(&host.security_opt)?;
    let filters = &engine.inner.filters;
    let seccomp = match options.profile {
        _ if privileged || options.unconfined => PathBuf::new(),
        Some(profile) => filters.custom(profile, capabilities)?,
        None => filters.file(capabilities)?,
    };
    Ok(Security {
        capabilities,
        seccomp: seccomp.to_string_lossy().into_owned(),
        no_new_privileges: options.no_new_privileges,
        propagation: Vec::new(),
        sealed: Vec::new(),
        rlimits: limits::rlimits(&host.ulimits)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(option: &str, selinux: bool, expected: std::result::Result<Options<'_>, &str>) {
        let options = [option.to_owned()];
        let read = Options::read_on(&options, selinux).map_err(|e| e.to_string());
        assert_eq!(read, expected.map_err(str::to_owned), "{option}");
    }

    #[test]
    fn options_are_read_as_dockers() {
        check("no-new-privileges", false, Ok(Options { no_new_privileges: true, ..Options::default() }));
        check("no-new-privileges:false", false, Ok(Options::default()));
        check("seccomp=unconfined", false, Ok(Options { unconfined: true, ..Options::default() }));
        check("seccomp={\"a\":1}", false, Ok(Options { profile: Some("{\"a\":1}"), ..Options::default() }));
        check("label=type:svirt_t", false, Ok(Options::default()));
        check("label=type:svirt_t", true, Err("--security-opt label=type:svirt_t is not supported yet"));
        check("fish", false, Err("invalid --security-opt 1: \"fish\""));
        check("credentialspec=file://x", false, Err("invalid --security-opt 2: \"credentialspec=file://x\""));
    }
}
