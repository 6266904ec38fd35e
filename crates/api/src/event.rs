//! One line of `/events`, with the old members beside the new.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep_model::Timestamp;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Before API 1.22: only containers and images have these three.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// `local` or `swarm`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// Ours: where the next request may take up (`/events?cursor=`), at any manager. Only with a scope of `swarm`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cursor: String,
    pub time: i64,
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

impl Message {
    pub fn new(
        kind: &str,
        action: &str,
        id: &str,
        attributes: BTreeMap<String, String>,
        scope: &str,
        time: Timestamp,
    ) -> Self {
        let old = matches!(kind, "container" | "image");
        Self {
            status: if old { action.to_owned() } else { String::new() },
            id: if old { id.to_owned() } else { String::new() },
            from: if kind == "container" {
                attributes.get("image").cloned().unwrap_or_default()
            } else {
                String::new()
            },
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: Actor { id: id.to_owned(), attributes },
            scope: scope.to_owned(),
            cursor: String::new(),
            time: time.0.div_euclid(1_000_000_000),
            time_nano: time.0,
        }
    }

    /// Whether `/events?filters=…` lets it through (moby `daemon/events/filter.go`).
    pub fn passes(&self, filters: &crate::Filters) -> bool {
        // `exec_start: sh` is asked for as `exec_start`, `health_status: healthy` also as it is.
        let verb = self.action.split_once(':').map_or(self.action.as_str(), |(verb, _)| verb);
        let named = |key: &str, kind: &str| {
            if !filters.contains(key) {
                return true;
            }
            let name = self.actor.attributes.get("name").map_or("", String::as_str);
            self.kind == kind
                && filters.get(key).any(|wanted| {
                    self.actor.id.starts_with(wanted) || wanted == name || name.strip_prefix('/') == Some(wanted)
                })
        };
        let image = !filters.contains("image")
            || filters.get("image").any(|wanted| {
                let have = match self.kind.as_str() {
                    "image" => Some(self.actor.id.as_str()),
                    "container" => self.actor.attributes.get("image").map(String::as_str),
                    _ => None,
                };
                let name = self.actor.attributes.get("name").map_or("", String::as_str);
                have.is_some_and(|have| have == wanted || have.split(':').next() == Some(wanted))
                    || self.kind == "image" && (name == wanted || name.split(':').next() == Some(wanted))
            });
        (filters.exact("event", &self.action) || filters.exact("event", verb))
            && filters.exact("type", &self.kind)
            && filters.exact("scope", &self.scope)
            && named("container", "container")
            && named("volume", "volume")
            && named("network", "network")
            && named("service", "service")
            && named("node", "node")
            && named("secret", "secret")
            && named("config", "config")
            && named("daemon", "daemon")
            && image
            && filters.labels("label", &self.actor.attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Filters;

    #[test]
    fn old_and_new_members() {
        let attributes: BTreeMap<_, _> =
            [("image".to_owned(), "busybox".to_owned()), ("name".into(), "a".into())].into();
        let m = Message::new("container", "exec_start: sh", "abc", attributes, "local", Timestamp(1_500_000_000));
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(
            json,
            r#"{"status":"exec_start: sh","id":"abc","from":"busybox","Type":"container","Action":"exec_start: sh","Actor":{"ID":"abc","Attributes":{"image":"busybox","name":"a"}},"scope":"local","time":1,"timeNano":1500000000}"#
        );
        let passes = |f: &str| m.passes(&Filters::parse(f).unwrap());
        assert!(passes(r#"{"event":["exec_start"],"type":["container"]}"#));
        assert!(passes(r#"{"container":["a"]}"#) && !passes(r#"{"container":["b"]}"#));
        assert!(passes(r#"{"image":["busybox"]}"#) && !passes(r#"{"scope":["swarm"]}"#));
        assert!(!passes(r#"{"service":["a"]}"#));
    }
}
