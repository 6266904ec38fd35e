//! A seccomp profile of a user's own, in Docker's JSON, compiled as runc compiles it.

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use serde::Deserialize;

use super::EPERM;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: String,
    default_errno_ret: Option<i32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<i32>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// When a rule counts: for containers with one of the capabilities, on an architecture, from a kernel on.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// What is known of this host and this container.
pub(super) struct Here {
    pub(super) capabilities: u64,
    /// Major and minor number.
    pub(super) kernel: (u32, u32),
}

/// The sentence is for the user: it follows "failed to use the seccomp profile: ".
pub(super) fn build(text: &str, here: &Here) -> Result<ScmpFilterContext, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|e| format!("decoding seccomp profile failed: {e}"))?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let inner = |error: SeccompError| error.to_string();
    let mut filter = ScmpFilterContext::new(default).map_err(inner)?;
    for arch in architectures(&profile)? {
        if arch != ScmpArch::Native && !filter.is_arch_present(arch).map_err(inner)? {
            filter.add_arch(arch).map_err(inner)?;
        }
    }
    for rule in profile.syscalls.iter().flatten() {
        let counts = rule.includes.as_ref().map_or(Ok(true), |c| c.holds(here, true))?
            && !rule.excludes.as_ref().map_or(Ok(false), |c| c.holds(here, false))?;
        let action = action(&rule.action, rule.errno_ret)?;
        // A rule that says what is said anyway is refused by libseccomp.
        if !counts || action == default {
            continue;
        }
        for name in rule.names.iter().chain(std::iter::once(&rule.name)).filter(|n| !n.is_empty()) {
            // As in Docker: a profile may name calls that this kernel or architecture does not have.
            let Ok(number) = ScmpSyscall::from_name(name) else { continue };
            for conditions in conditions(rule.args.as_deref().unwrap_or_default())? {
                let added = if conditions.is_empty() {
                    filter.add_rule(action, number)
                } else {
                    filter.add_rule_conditional(action, number, &conditions)
                };
                added.map_err(|error| format!("rule for {name}: {error}"))?;
            }
        }
    }
    Ok(filter)
}

/// All must hold at once, except that several of one argument mean: one of them.
fn conditions(args: &[Arg]) -> Result<Vec<Vec<ScmpArgCompare>>, String> {
    let all = args.iter().map(compare).collect::<Result<Vec<_>, _>>()?;
    let repeated = args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| a.index == b.index));
    Ok(if repeated { all.into_iter().map(|one| vec![one]).collect() } else { vec![all] })
}

fn compare(arg: &Arg) -> Result<ScmpArgCompare, String> {
    let (op, value) = match arg.op.as_str() {
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, arg.value),
        "SCMP_CMP_LT" => (ScmpCompareOp::Less, arg.value),
        "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, arg.value),
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, arg.value),
        "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, arg.value),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, arg.value),
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(arg.value), arg.value_two),
        other => return Err(format!("invalid operator {other:?}")),
    };
    if arg.index > 5 {
        return Err(format!("invalid argument index {}", arg.index));
    }
    Ok(ScmpArgCompare::new(arg.index, op, value))
}

fn action(name: &str, errno: Option<i32>) -> Result<ScmpAction, String> {
    let number = errno.unwrap_or(EPERM);
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(number),
        "SCMP_ACT_TRACE" => ScmpAction::Trace(u16::try_from(number).unwrap_or_default()),
        "SCMP_ACT_LOG" => ScmpAction::Log,
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        other => return Err(format!("invalid action {other:?}")),
    })
}

#[cfg(target_arch = "x86_64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_X86_64", "amd64");
#[cfg(target_arch = "aarch64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_AARCH64", "arm64");

fn architectures(profile: &Profile) -> Result<Vec<ScmpArch>, String> {
    let mapped = profile.arch_map.iter().flatten().filter(|map| map.architecture == NATIVE.0);
    let mapped = mapped.flat_map(|map| map.sub_architectures.iter().flatten());
    let names = profile.architectures.iter().flatten().chain(mapped);
    names.map(|name| name.parse().map_err(|_| format!("invalid architecture {name:?}"))).collect()
}

impl Condition {
    /// `all`: an `includes`, whose every word must hold; else an `excludes`, where one is enough.
    fn holds(&self, here: &Here, all: bool) -> Result<bool, String> {
        let mut verdicts = Vec::new();
        if !self.arches.is_empty() {
            verdicts.push(self.arches.iter().any(|arch| arch == NATIVE.1));
        }
        for cap in &self.caps {
            let bit = crate::spec::capabilities::parse(cap).map_err(|e| e.to_string())?;
            verdicts.push(here.capabilities & bit != 0);
        }
        if let Some(text) = &self.min_kernel {
            let wanted = kernel(text).ok_or_else(|| format!("invalid kernel version {text:?}"))?;
            verdicts.push(here.kernel >= wanted);
        }
        Ok(if all { verdicts.iter().all(|v| *v) } else { verdicts.iter().any(|v| *v) })
    }
}

/// The first two numbers of `6.18.44-x`.
pub(super) fn kernel(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(['.', '-', '+', '_']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
