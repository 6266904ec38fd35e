//! `--log-opt tag`: a Go template over what a log driver knows of its container (moby `logger.Info`).
//!
//! Fields alone, `{{.Name}}`; functions and pipelines are refused by name.

use crate::container::ContainerRecord;

/// The text with every field filled in. The error is what Go's `text/template` says.
pub(super) fn expand(template: &str, record: &ContainerRecord) -> Result<String, String> {
    let mut out = String::new();
    let mut at = 0;
    while let Some(open) = template[at..].find("{{").map(|i| at + i) {
        out.push_str(&template[at..open]);
        let line = template[..open].matches('\n').count() + 1;
        let close = template[open..]
            .find("}}")
            .map(|i| open + i)
            .ok_or_else(|| format!("template: log-tag:{line}: unclosed action"))?;
        let action = template[open + 2..close].trim();
        let name = action.strip_prefix('.').filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric()));
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
            format!("template: log-tag:{line}: {{{{{action}}}}} is not supported: a tag may have fields ({{{{.Name}}}}) and text")
        })?;
        out.push_str(&field(name, record).ok_or_else(|| {
            let column = open + template[open..].find('.').unwrap_or(0) - template[..open].rfind('\n').map_or(0, |i| i + 1);
            format!(
                "template: log-tag:{line}:{column}: executing \"log-tag\" at <{action}>: can't evaluate field {name} in type *logger.Info"
            )
        })?);
        at = close + 2;
    }
    out.push_str(&template[at..]);
    Ok(out)
}

fn field(name: &str, record: &ContainerRecord) -> Option<String> {
    Some(match name {
        "ID" => record.id.short().to_owned(),
        "FullID" | "ContainerID" => record.id.to_string(),
        "Name" => record.name.clone(),
        "ContainerName" => format!("/{}", record.name),
        // Docker cuts the digest with its algorithm in front, too.
        "ImageID" => record.image_id.chars().take(12).collect(),
        "ImageFullID" | "ContainerImageID" => record.image_id.clone(),
        "ImageName" | "ContainerImageName" => record.config.image.clone(),
        "Command" => {
            std::iter::once(&record.path).chain(&record.args).map(String::as_str).collect::<Vec<_>>().join(" ")
        }
        "ContainerEntrypoint" => record.path.clone(),
        "DaemonName" => "docker".to_owned(),
        "Hostname" => nix::unistd::gethostname().ok()?.to_string_lossy().into_owned(),
        _ => return None,
    })
}
