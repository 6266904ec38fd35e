//! Docker's default seccomp profile, compiled to BPF once per set of capabilities.
//!
//! Compiling takes longer than everything else in starting a container (12-18 ms), and the result depends only on the
//! capabilities; so the daemon compiles, keeps the program in a file under the exec root, and helpers only load it.

mod custom;
mod profile;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

use sha2::{Digest as _, Sha256};

use crate::error::{EngineError, Result};

const ENOSYS: i32 = 38;
const EPERM: i32 = 1;

/// Compiled filters in files, made when first asked for.
#[derive(Debug)]
pub(crate) struct Filters {
    directory: PathBuf,
    /// Names of files.
    made: Mutex<std::collections::BTreeSet<String>>,
}

impl Filters {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, made: Mutex::default() }
    }

    /// The file with the filter for a process that has these capabilities. Compiles at most once each; blocks meanwhile.
    pub(crate) fn file(&self, capabilities: u64) -> Result<PathBuf> {
        self.made(format!("{capabilities:016x}.bpf"), || {
            compile(capabilities).map_err(|e| EngineError::Internal(format!("seccomp profile: {e}")))
        })
    }

    /// The same for a profile of the user's own, in Docker's JSON.
    pub(crate) fn custom(&self, profile: &str, capabilities: u64) -> Result<PathBuf> {
        let digest = hex::encode(Sha256::digest(profile));
        self.made(format!("{capabilities:016x}-{digest}.bpf"), || {
            compile_custom(profile, capabilities).map_err(EngineError::Invalid)
        })
    }

    fn made(&self, name: String, program: impl FnOnce() -> Result<Vec<u8>>) -> Result<PathBuf> {
        let path = self.directory.join(&name);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains(&name) {
            write(&self.directory, &path, &program()?).map_err(EngineError::file("failed to write", &path))?;
            made.insert(name);
        }
        Ok(path)
    }
}

fn write(directory: &Path, path: &Path, program: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, program)?;
    std::fs::rename(temporary, path)
}

/// The default profile for a process with these capabilities, as an array of `struct sock_filter`.
pub(crate) fn compile(capabilities: u64) -> std::io::Result<Vec<u8>> {
    let filter = build(capabilities).map_err(std::io::Error::other)?;
    let mut program = newer_syscalls();
    program.extend(export(&filter)?);
    Ok(program)
}

/// A profile of the user's own, as an array of `struct sock_filter`; the error is a sentence for the user.
pub(crate) fn compile_custom(profile: &str, capabilities: u64) -> std::result::Result<Vec<u8>, String> {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let here = custom::Here { capabilities, kernel: custom::kernel(&release).unwrap_or_default() };
    custom::build(profile, &here)
        .and_then(|filter| export(&filter).map_err(|e| e.to_string()))
        .map_err(|why| format!("failed to use the seccomp profile: {why}"))
}

fn build(capabilities: u64) -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(EPERM))?;
    for arch in architectures() {
        filter.add_arch(*arch)?;
    }
    for name in profile::ALLOWED.iter().chain(profile::ALLOWED_HERE) {
        allow(&mut filter, name, &[])?;
    }
    for (capability, names) in profile::BY_CAPABILITY {
        if capabilities & (1 << capability) != 0 {
            for name in *names {
                allow(&mut filter, name, &[])?;
            }
        }
    }
    for domain in profile::PERSONALITIES {
        allow(&mut filter, "personality", &[ScmpArgCompare::new(0, ScmpCompareOp::Equal, *domain)])?;
    }
    allow(&mut filter, "socket", &[ScmpArgCompare::new(0, ScmpCompareOp::NotEqual, profile::AF_VSOCK)])?;
    if capabilities & (1 << profile::CAP_SYS_ADMIN) == 0 {
        // New namespaces are for those who may administer; clone3 hides its flags from a filter, so it "does not exist"
        // and libc falls back to clone.
        let no_namespaces = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(profile::CLONE_NAMESPACES), 0);
        allow(&mut filter, "clone", &[no_namespaces])?;
        if let Ok(number) = ScmpSyscall::from_name("clone3") {
            filter.add_rule(ScmpAction::Errno(ENOSYS), number)?;
        }
    }
    Ok(filter)
}

/// Through a memory file: exporting to memory needs a libseccomp younger than Debian's.
fn export(filter: &ScmpFilterContext) -> std::io::Result<Vec<u8>> {
    let file = rustix::fs::memfd_create(c"seccomp", rustix::fs::MemfdFlags::CLOEXEC)?;
    filter.export_bpf(&file).map_err(std::io::Error::other)?;
    let mut file = std::fs::File::from(file);
    let mut program = Vec::new();
    std::io::Seek::rewind(&mut file)?;
    std::io::Read::read_to_end(&mut file, &mut program)?;
    Ok(program)
}

/// A name that this libseccomp or this architecture does not know needs no rule: the default refuses it.
fn allow(filter: &mut ScmpFilterContext, name: &str, conditions: &[ScmpArgCompare]) -> Result<(), SeccompError> {
    let Ok(number) = ScmpSyscall::from_name(name) else { return Ok(()) };
    if conditions.is_empty() {
        filter.add_rule(ScmpAction::Allow, number)?;
    } else {
        filter.add_rule_conditional(ScmpAction::Allow, number, conditions)?;
    }
    Ok(())
}

fn architectures() -> &'static [ScmpArch] {
    #[cfg(target_arch = "x86_64")]
    return &[ScmpArch::X86, ScmpArch::X32];
    #[cfg(target_arch = "aarch64")]
    return &[ScmpArch::Arm];
}

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Instructions put before libseccomp's own: system calls younger than the linked libseccomp are allowed where Docker
/// allows them, and otherwise do not exist. Refusing them with EPERM instead would break every libc that tries the new
/// call before the old one (runc prepends the same kind of stub).
fn newer_syscalls() -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JEQ: u16 = 0x15;
    const JGT: u16 = 0x25;
    const JGE: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32_BIT: u32 = 0x4000_0000;
    let allowed = profile::ALLOWED_NEWER;
    let count = u8::try_from(allowed.len()).unwrap_or(u8::MAX - 8);
    // After the checks below come `count` comparisons, "no such call", "allowed", then libseccomp's program.
    let mut code: Vec<(u16, u8, u8, u32)> = vec![
        (LOAD, 0, 0, 4),
        (JEQ, 0, count + 5, AUDIT_ARCH),
        (LOAD, 0, 0, 0),
        (JGE, count + 3, 0, X32_BIT),
        (JGT, 0, count + 2, profile::NEWEST_KNOWN),
    ];
    for (index, number) in (0..count).zip(allowed) {
        code.push((JEQ, count - index, 0, *number));
    }
    code.push((RETURN, 0, 0, 0x0005_0000 | ENOSYS as u32));
    code.push((RETURN, 0, 0, 0x7fff_0000));
    code.into_iter()
        .flat_map(|(op, jt, jf, k)| {
            let [a, b] = op.to_ne_bytes();
            let [c, d, e, f] = k.to_ne_bytes();
            [a, b, jt, jf, c, d, e, f]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does, for the few instructions that are in one.
    fn run(program: &[u8], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|a| data.extend(a.to_ne_bytes()));
        let (mut pc, mut acc) = (0usize, 0u32);
        loop {
            let i = &program[pc * 8..pc * 8 + 8];
            let (op, k) = (u16::from_ne_bytes([i[0], i[1]]), u32::from_ne_bytes([i[4], i[5], i[6], i[7]]));
            let (jt, jf) = (usize::from(i[2]), usize::from(i[3]));
            pc += 1;
            match op {
                0x20 => acc = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
                0x54 => acc &= k,
                0x05 => pc += k as usize,
                0x15 => pc += if acc == k { jt } else { jf },
                0x25 => pc += if acc > k { jt } else { jf },
                0x35 => pc += if acc >= k { jt } else { jf },
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const DEFAULT_CAPS: u64 = 0xa804_25fb;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_default_profile_decides_as_dockers() {
        let program = compile(DEFAULT_CAPS).unwrap();
        let call = |number: i64, args: [u64; 6]| run(&program, AUDIT_ARCH, u32::try_from(number).unwrap(), args);
        assert_eq!(call(libc::SYS_read, [0; 6]), ALLOW);
        assert_eq!(call(libc::SYS_execve, [0; 6]), ALLOW);
        assert_eq!(call(libc::SYS_mount, [0; 6]), 0x5_0000 | 1, "mount needs CAP_SYS_ADMIN");
        assert_eq!(call(libc::SYS_unshare, [0; 6]), 0x5_0000 | 1);
        assert_eq!(call(libc::SYS_clone, [17, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_clone, [0x1000_0000, 0, 0, 0, 0, 0]), 0x5_0000 | 1, "CLONE_NEWUSER");
        assert_eq!(call(libc::SYS_clone3, [0; 6]), 0x5_0000 | 38);
        assert_eq!(call(libc::SYS_chroot, [0; 6]), ALLOW, "CAP_SYS_CHROOT is a default");
        assert_eq!(call(libc::SYS_socket, [40, 0, 0, 0, 0, 0]), 0x5_0000 | 1, "AF_VSOCK");
        assert_eq!(call(libc::SYS_socket, [2, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_keyctl, [0; 6]), 0x5_0000 | 1);
        assert_eq!(call(452, [0; 6]), ALLOW, "fchmodat2");
        assert_eq!(call(999, [0; 6]), 0x5_0000 | 38, "what does not exist yet");
        // A profile of one's own: conditions on arguments, capabilities and errors.
        let own = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"name": "chmod", "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "99.0"}},
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 10, "op": "SCMP_CMP_EQ"}]}
            ]}"#;
        let program = compile_custom(own, DEFAULT_CAPS).unwrap();
        let call = |number: i64, args: [u64; 6]| run(&program, AUDIT_ARCH, u32::try_from(number).unwrap(), args);
        assert_eq!([call(libc::SYS_mkdir, [0; 6]), call(libc::SYS_chmod, [0; 6])], [0x5_0000 | 13, 0x5_0000 | 1]);
        assert_eq!([call(libc::SYS_getpid, [0; 6]), call(libc::SYS_mount, [0; 6])], [ALLOW, ALLOW]);
        assert_eq!([2, 10, 1].map(|f| call(libc::SYS_socket, [f, 0, 0, 0, 0, 0])), [0x5_0000 | 1, 0x5_0000 | 1, ALLOW]);
        let program = compile_custom(own, DEFAULT_CAPS | 1 << profile::CAP_SYS_ADMIN).unwrap();
        assert_eq!(run(&program, AUDIT_ARCH, u32::try_from(libc::SYS_chmod).unwrap(), [0; 6]), ALLOW);
        let why = |text: &str| compile_custom(text, DEFAULT_CAPS).unwrap_err();
        assert!(why("{").starts_with("failed to use the seccomp profile: decoding seccomp profile failed"));
        assert_eq!(why(r#"{"defaultAction": "SING"}"#), "failed to use the seccomp profile: invalid action \"SING\"");
        let admin = compile(DEFAULT_CAPS | 1 << profile::CAP_SYS_ADMIN).unwrap();
        assert_eq!(run(&admin, AUDIT_ARCH, u32::try_from(libc::SYS_mount).unwrap(), [0; 6]), ALLOW);
        assert_eq!(run(&admin, AUDIT_ARCH, u32::try_from(libc::SYS_clone3).unwrap(), [0; 6]), ALLOW);
    }
}
