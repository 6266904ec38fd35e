//! The last step inside the container: rlimits, seccomp, capabilities, then `execve`, with errors told through a pipe.
//!
//! libcontainer hands over with all capabilities (the spec names none), so that the filter can be loaded without
//! `no_new_privileges` and by non-root users too; what Docker leaves a process with is set here. Runs in a process cloned
//! from a single-threaded helper: allocating is fine, nothing else of the daemon is here.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caps::{CapSet, Capability, CapsHashSet};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::protocol::Security;
use crate::sys;

/// Why a process could not become the command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecFailure {
    /// As runc says it: `exec: "x": executable file not found in $PATH`.
    pub(crate) message: String,
    pub(crate) exit_code: i32,
}

impl ExecFailure {
    fn new(exit_code: i32, message: String) -> Self {
        Self { message, exit_code }
    }
}

#[derive(Clone)]
pub(crate) struct SkepExecutor {
    pub(crate) security: Security,
    /// Compiled filter; empty means none.
    pub(crate) filter: Arc<Vec<u8>>,
    /// Close-on-exec: its end of file means the command runs.
    pub(crate) report: Arc<std::fs::File>,
}

impl Executor for SkepExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failure = self.become_command(spec);
        if let Ok(text) = serde_json::to_vec(&failure) {
            let _ = (&*self.report).write_all(&text);
        }
        // Not through libcontainer's own error path: it would print, and end with 255.
        sys::process::exit_now(failure.exit_code)
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

impl SkepExecutor {
    /// Returns only if it failed.
    fn become_command(&self, spec: &Spec) -> ExecFailure {
        match self.prepare(spec) {
            Ok((path, args, env)) => {
                let errno = match nix::unistd::execve(&path, &args, &env) {
                    Ok(never) => match never {},
                    Err(errno) => errno,
                };
                let shown = path.to_string_lossy();
                let code = if errno == nix::errno::Errno::ENOENT { 127 } else { 126 };
                ExecFailure::new(code, format!("exec {shown}: {}", describe(errno)))
            }
            Err(failure) => failure,
        }
    }

    fn prepare(&self, spec: &Spec) -> Result<(CString, Vec<CString>, Vec<CString>), ExecFailure> {
        let failed = |what: &str, why: &dyn std::fmt::Display| ExecFailure::new(128, format!("{what}: {why}"));
        let process = spec.process().as_ref().ok_or_else(|| failed("spec", &"no process"))?;
        let empty = Vec::new();
        let args = process.args().as_ref().unwrap_or(&empty);
        let env = process.env().as_ref().unwrap_or(&empty);
        let command = args.first().ok_or_else(|| failed("spec", &"no command"))?;
        let path = look_up(command, env)?;
        let c_string = |text: &str| CString::new(text).map_err(|e| failed("argument", &e));
        let args = args.iter().map(|a| c_string(a)).collect::<Result<Vec<_>, _>>()?;
        let env = env.iter().map(|e| c_string(e)).collect::<Result<Vec<_>, _>>()?;
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|e| failed("path", &e))?;

        for (path, word) in &self.security.propagation {
            let flags = crate::volume::propagation(word).ok_or_else(|| failed("mount propagation", word))?;
            rustix::mount::mount_change(path, flags)
                .map_err(|e| failed(&format!("error setting the propagation of {path}"), &e))?;
        }
        for folder in &self.security.sealed {
            seal(Path::new(folder)).map_err(|e| failed(&format!("error making {folder} read-only"), &e))?;
        }
        for limit in &self.security.rlimits {
            sys::process::set_rlimit(limit.resource, limit.soft, limit.hard)
                .map_err(|e| failed("error setting rlimit", &e))?;
        }
        sys::process::reset_signals();
        // As runc: before the capabilities go if that is allowed, since without no_new_privs loading needs CAP_SYS_ADMIN;
        // after everything else otherwise.
        if !self.filter.is_empty() && !self.security.no_new_privileges {
            sys::seccomp::load(&self.filter).map_err(|e| failed("error loading seccomp filter", &e))?;
        }
        drop_capabilities(self.security.capabilities).map_err(|e| failed("error setting capabilities", &e))?;
        if self.security.no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(|e| failed("error setting no_new_privs", &e))?;
            if !self.filter.is_empty() {
                sys::seccomp::load(&self.filter).map_err(|e| failed("error loading seccomp filter", &e))?;
            }
        }
        Ok((path, args, env))
    }
}

/// Binds every file below a directory over itself, read-only. By libcontainer, which is careful with every path, a bind takes
/// some fifty system calls; here no command has run yet, and the directory is of the engine's making.
fn seal(folder: &Path) -> std::io::Result<()> {
    use rustix::mount::{MountFlags, mount_bind, mount_remount};
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            seal(&path)?;
        } else {
            mount_bind(&path, &path)?;
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount_remount(&path, MountFlags::BIND | flags, c"")?;
        }
    }
    Ok(())
}

fn drop_capabilities(keep: u64) -> Result<(), caps::errors::CapsError> {
    let kept: CapsHashSet = caps::all().into_iter().filter(|c| keep & c.bitmask() != 0).collect();
    for capability in bounding_now()? {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    let _ = caps::clear(None, CapSet::Ambient);
    // What the host itself does not have cannot be given.
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = kept.intersection(&permitted).copied().collect();
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

fn bounding_now() -> Result<Vec<Capability>, caps::errors::CapsError> {
    Ok(caps::read(None, CapSet::Bounding)?.into_iter().collect())
}

/// Go's `exec.LookPath` in the container's own PATH, with runc's sentences.
fn look_up(command: &str, env: &[String]) -> Result<PathBuf, ExecFailure> {
    if command.contains('/') {
        return match runnable(Path::new(command)) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(nix::errno::Errno::ENOENT) => {
                Err(ExecFailure::new(127, format!("exec: {command:?}: stat {command}: no such file or directory")))
            }
            Err(errno) => Err(ExecFailure::new(126, format!("exec: {command:?}: {}", describe(errno)))),
        };
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("");
    let mut denied = None;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(command);
        match runnable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(errno) if errno == nix::errno::Errno::EACCES => denied = Some(errno),
            Err(_) => {}
        }
    }
    match denied {
        Some(errno) => Err(ExecFailure::new(126, format!("exec: {command:?}: {}", describe(errno)))),
        None => Err(ExecFailure::new(127, format!("exec: {command:?}: executable file not found in $PATH"))),
    }
}

/// Any execute bit will do here; whether it is ours is the kernel's to say.
fn runnable(path: &Path) -> Result<(), nix::errno::Errno> {
    use nix::errno::Errno;
    let metadata = path.metadata().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// As Go prints an errno.
fn describe(errno: nix::errno::Errno) -> String {
    let text = errno.desc();
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_in_runcs_words() {
        let env = ["PATH=/usr/bin:/bin".to_owned()];
        assert_eq!(look_up("sh", &env).unwrap().file_name().unwrap(), "sh");
        let missing = look_up("nope", &env).unwrap_err();
        assert_eq!(
            (missing.exit_code, missing.message.as_str()),
            (127, "exec: \"nope\": executable file not found in $PATH")
        );
        let missing = look_up("/nope", &env).unwrap_err();
        assert_eq!(missing.message, "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!(look_up("/etc", &env).unwrap_err(), ExecFailure::new(126, "exec: \"/etc\": is a directory".into()));
        assert_eq!(
            look_up("/etc/passwd", &env).unwrap_err(),
            ExecFailure::new(126, "exec: \"/etc/passwd\": permission denied".into())
        );
    }
}
