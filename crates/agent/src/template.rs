//! The few Go template fields Docker allows in a service's env, hostname and mounts: `{{.Node.Hostname}}` and its kin.
//!
//! Fields only: no pipelines, functions or conditions. What is not one of the fields is an error, as in Docker.

use skep_model::Labels;
use skep_model::task::Task;

use crate::spec::NodeFacts;

/// What the fields stand for.
pub(crate) struct Context<'a> {
    pub(crate) task: &'a Task,
    pub(crate) node: &'a NodeFacts,
}

/// Replaces every `{{…}}`.
pub(crate) fn expand(text: &str, context: &Context<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        out.push_str(&rest[..start]);
        let Some(end) = rest[start..].find("}}") else {
            return Err(format!("expanding {text:?} failed: unclosed action"));
        };
        let field = rest[start + 2..start + end].trim();
        let value = lookup(field, context);
        out.push_str(&value.ok_or_else(|| format!("expanding {text:?} failed: no such field {field:?}"))?);
        rest = &rest[start + end + 2..];
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup(field: &str, context: &Context<'_>) -> Option<String> {
    let (task, node) = (context.task, context.node);
    Some(match field {
        ".Service.ID" => task.service_id.to_string(),
        ".Service.Name" => task.service_name.clone(),
        ".Node.ID" => node.node_id.to_string(),
        ".Node.Hostname" => node.hostname.clone(),
        ".Node.Platform.OS" => node.os.clone(),
        ".Node.Platform.Architecture" => node.architecture.clone(),
        ".Task.ID" => task.id.to_string(),
        ".Task.Name" => task.name(),
        // A global service's task counts its node as its slot.
        ".Task.Slot" => task.slot.map_or_else(|| node.node_id.to_string(), |slot| slot.to_string()),
        other => return label(other, &task.service_labels),
    })
}

/// `.Service.Labels.key`, or `index .Service.Labels "key.with.dots"`.
fn label(field: &str, labels: &Labels) -> Option<String> {
    let key = match field.strip_prefix(".Service.Labels.") {
        Some(key) => key,
        None => field.strip_prefix("index .Service.Labels")?.trim().strip_prefix('"')?.strip_suffix('"')?,
    };
    labels.get(key).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::{node, task};

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let (task, node) = (task(), node());
        let got = expand(text, &Context { task: &task, node: &node });
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{text}");
    }

    #[test]
    fn fields_are_replaced() {
        check("plain", Ok("plain"));
        check("{{.Node.Hostname}}-{{ .Task.Slot }}", Ok("node1-3"));
        check("{{.Service.Name}}", Ok("web"));
        check("{{.Task.Name}}", Ok("web.3.task1"));
        check("{{.Service.Labels.tier}}{{index .Service.Labels \"a.b\"}}", Ok("frontdots"));
    }

    #[test]
    fn what_is_no_field_is_an_error() {
        check("{{.Nope}}", Err("expanding \"{{.Nope}}\" failed: no such field \".Nope\""));
        check("{{.Task.ID", Err("expanding \"{{.Task.ID\" failed: unclosed action"));
    }
}
