//! `Privileges`, in both directions.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skep_model::task as model;
use skep_model::task::{AppArmor, Seccomp};

use super::container::{AppArmorOptions, CredentialSpec, Privileges, SeccompOptions, SelinuxContext};
use crate::ConvertError;

type Result<T> = std::result::Result<T, ConvertError>;

pub(super) fn read(privileges: Privileges) -> Result<model::Privileges> {
    Ok(model::Privileges {
        credential_spec: privileges.credential_spec.map(credential_spec).transpose()?,
        selinux: privileges.selinux_context.map(|s| model::SelinuxContext {
            disable: s.disable,
            user: s.user,
            role: s.role,
            kind: s.kind,
            level: s.level,
        }),
        seccomp: privileges.seccomp.map(seccomp).transpose()?,
        apparmor: privileges.app_armor.map(|a| apparmor(&a)).transpose()?,
        no_new_privileges: privileges.no_new_privileges,
    })
}

/// moby `credentialSpecToGRPC`: exactly one source.
fn credential_spec(spec: CredentialSpec) -> Result<model::CredentialSpec> {
    let given = [("\"config\"", &spec.config), ("\"file\"", &spec.file), ("\"registry\"", &spec.registry)];
    let given: Vec<&str> = given.iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| *name).collect();
    match given[..] {
        ["\"config\""] => Ok(model::CredentialSpec::Config(spec.config)),
        ["\"file\""] => Ok(model::CredentialSpec::File(spec.file)),
        [_] => Ok(model::CredentialSpec::Registry(spec.registry)),
        [] => ConvertError::invalid(
            "invalid CredentialSpec: must either provide \"file\", \"registry\", or \"config\" for credential spec",
        ),
        [a, b] => {
            ConvertError::invalid(format!("invalid CredentialSpec: cannot specify both {a} and {b} credential specs"))
        }
        _ => ConvertError::invalid(
            "invalid CredentialSpec: cannot specify both \"config\", \"file\", and \"registry\" credential specs",
        ),
    }
}

fn seccomp(options: SeccompOptions) -> Result<Seccomp> {
    match options.mode.as_str() {
        "" | "default" => Ok(Seccomp::Default),
        "unconfined" => Ok(Seccomp::Unconfined),
        "custom" => {
            let profile = STANDARD.decode(&options.profile).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            match profile.filter(|text| !text.is_empty()) {
                Some(text) => Ok(Seccomp::Custom(text)),
                None => {
                    ConvertError::invalid("Privileges.Seccomp.Profile must hold a profile in base64 in mode \"custom\"")
                }
            }
        }
        other => ConvertError::invalid(format!("invalid seccomp mode: {other:?} (default, unconfined and custom are)")),
    }
}

fn apparmor(options: &AppArmorOptions) -> Result<AppArmor> {
    match options.mode.as_str() {
        "" | "default" => Ok(AppArmor::Default),
        "disabled" => Ok(AppArmor::Disabled),
        other => ConvertError::invalid(format!("invalid AppArmor mode: {other:?} (default and disabled are)")),
    }
}

pub(super) fn shown(privileges: &model::Privileges) -> Privileges {
    Privileges {
        credential_spec: privileges.credential_spec.as_ref().map(|spec| {
            let mut out = CredentialSpec::default();
            match spec {
                model::CredentialSpec::Config(id) => out.config.clone_from(id),
                model::CredentialSpec::File(path) => out.file.clone_from(path),
                model::CredentialSpec::Registry(key) => out.registry.clone_from(key),
            }
            out
        }),
        selinux_context: privileges.selinux.as_ref().map(|s| SelinuxContext {
            disable: s.disable,
            user: s.user.clone(),
            role: s.role.clone(),
            kind: s.kind.clone(),
            level: s.level.clone(),
        }),
        seccomp: privileges.seccomp.as_ref().map(|seccomp| {
            let (mode, profile) = match seccomp {
                Seccomp::Default => ("default", String::new()),
                Seccomp::Unconfined => ("unconfined", String::new()),
                Seccomp::Custom(profile) => ("custom", STANDARD.encode(profile)),
            };
            SeccompOptions { mode: mode.into(), profile }
        }),
        app_armor: privileges.apparmor.map(|mode| AppArmorOptions {
            mode: match mode {
                AppArmor::Default => "default",
                AppArmor::Disabled => "disabled",
            }
            .into(),
        }),
        no_new_privileges: privileges.no_new_privileges,
    }
}
