//! What labels of services and nodes say of connections: which task takes one, what it sees of its client, and who may
//! open one. Labels, because the stock CLI and stack files can set them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::Labels;
use crate::validate::{Invalid, name};

/// On a service: `snat` gives its tasks the ingress address of the host that a connection came by, as Docker does.
pub const SOURCE_LABEL: &str = "skep.mesh.source";
/// On a service: with `local` a host gives connections to its published ports to its own tasks only.
pub const POLICY_LABEL: &str = "skep.mesh.policy";
/// On a service: with `v2` connections to its published TCP ports begin with a PROXY protocol header.
pub const PROXY_PROTOCOL_LABEL: &str = "skep.mesh.proxy-protocol";
/// On a service: with `client` all connections from one address go to the same task.
pub const AFFINITY_LABEL: &str = "skep.balance.affinity";
/// On a service: the services whose tasks may open connections to its tasks.
pub const ALLOW_FROM_LABEL: &str = "skep.network.allow-from";
/// On a node: how many connections its tasks get where those of a node without it get one.
pub const WEIGHT_LABEL: &str = "skep.balance.weight";
pub const WEIGHT_MAX: u8 = 10;

/// Label, what is so without it, and what else can be asked for.
const CHOICES: [(&str, &str, &str); 4] = [
    (SOURCE_LABEL, "client", "snat"),
    (POLICY_LABEL, "cluster", "local"),
    (PROXY_PROTOCOL_LABEL, "none", "v2"),
    (AFFINITY_LABEL, "none", "client"),
];

const EVERYBODY: &str = "*";
const NOBODY: &str = "none";

/// What a service's labels ask for its connections; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Tasks see the host that a connection came by, not the client.
    pub masquerade: bool,
    /// Published ports lead to tasks of the same host only.
    pub local: bool,
    pub proxy_protocol: bool,
    /// A client's address decides which task it gets.
    pub by_client: bool,
    /// Names of the services that may open connections; everybody, if absent.
    pub allow_from: Option<BTreeSet<String>>,
}

impl Traffic {
    /// Of labels that `check_service` let pass; a value that it would not is as if it were not there, but for
    /// [`ALLOW_FROM_LABEL`], where it is the name of a service that does not exist.
    pub fn of(labels: &Labels) -> Self {
        let asked = |wanted: &str| {
            let choice = CHOICES.iter().find(|(label, ..)| *label == wanted);
            choice.is_some_and(|(label, _, other)| labels.get(*label).is_some_and(|value| value == other))
        };
        Self {
            masquerade: asked(SOURCE_LABEL),
            local: asked(POLICY_LABEL),
            proxy_protocol: asked(PROXY_PROTOCOL_LABEL),
            by_client: asked(AFFINITY_LABEL),
            allow_from: labels.get(ALLOW_FROM_LABEL).and_then(|text| allowed(text)),
        }
    }
}

fn allowed(text: &str) -> Option<BTreeSet<String>> {
    let names: BTreeSet<&str> = text.split(',').map(str::trim).collect();
    if names.contains(EVERYBODY) {
        return None;
    }
    Some(names.into_iter().filter(|name| *name != NOBODY).map(str::to_owned).collect())
}

/// Refuses values that mean nothing, of labels on a service.
pub(crate) fn check_service(labels: &Labels) -> Result<(), Invalid> {
    for (label, usual, other) in CHOICES {
        match labels.get(label) {
            Some(text) if text != usual && text != other => {
                return Err(Invalid(format!("label {label}={text}: must be {usual} or {other}")));
            }
            Some(_) | None => {}
        }
    }
    let Some(text) = labels.get(ALLOW_FROM_LABEL) else { return Ok(()) };
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    let alone = matches!(names.as_slice(), [EVERYBODY | NOBODY]);
    if alone || names.iter().all(|one| *one != NOBODY && name(one).is_ok()) {
        return Ok(());
    }
    Err(Invalid(format!("label {ALLOW_FROM_LABEL}={text}: must be names of services such as web,api, or * or none")))
}

/// What [`WEIGHT_LABEL`] says of a node, 1 if it is not there.
pub fn weight(labels: &Labels) -> Result<u8, Invalid> {
    let Some(text) = labels.get(WEIGHT_LABEL) else { return Ok(1) };
    match text.parse() {
        Ok(weight @ 1..=WEIGHT_MAX) => Ok(weight),
        Ok(_) | Err(_) => {
            Err(Invalid(format!("label {WEIGHT_LABEL}={text}: must be a whole number from 1 to {WEIGHT_MAX}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(label: &str, value: &str) -> Labels {
        Labels::from([(label.to_owned(), value.to_owned())])
    }

    #[test]
    fn what_is_asked_for_and_what_is_not() {
        assert_eq!(Traffic::of(&Labels::new()), Traffic::default());
        assert_eq!(Traffic::of(&labels(SOURCE_LABEL, "snat")), Traffic { masquerade: true, ..Traffic::default() });
        assert_eq!(Traffic::of(&labels(SOURCE_LABEL, "client")), Traffic::default());
        assert_eq!(Traffic::of(&labels(POLICY_LABEL, "local")), Traffic { local: true, ..Traffic::default() });
        assert_eq!(
            Traffic::of(&labels(PROXY_PROTOCOL_LABEL, "v2")),
            Traffic { proxy_protocol: true, ..Traffic::default() }
        );
        assert_eq!(Traffic::of(&labels(AFFINITY_LABEL, "client")), Traffic { by_client: true, ..Traffic::default() });
        let allow = |text: &str| Traffic::of(&labels(ALLOW_FROM_LABEL, text)).allow_from;
        assert_eq!(allow("*"), None);
        assert_eq!(allow("none"), Some(BTreeSet::new()));
        assert_eq!(allow("web, api"), Some(["api".to_owned(), "web".to_owned()].into()));
    }

    #[test]
    fn refusals_name_the_label_and_what_it_can_be() {
        let refusal = |label: &str, value: &str| check_service(&labels(label, value)).unwrap_err().0;
        assert_eq!(refusal(SOURCE_LABEL, "dnat"), "label skep.mesh.source=dnat: must be client or snat");
        assert_eq!(refusal(POLICY_LABEL, ""), "label skep.mesh.policy=: must be cluster or local");
        assert_eq!(refusal(PROXY_PROTOCOL_LABEL, "v1"), "label skep.mesh.proxy-protocol=v1: must be none or v2");
        assert_eq!(refusal(AFFINITY_LABEL, "ip"), "label skep.balance.affinity=ip: must be none or client");
        for bad in ["", "web,", "web,none", "*,web", "web api"] {
            let text =
                format!("label skep.network.allow-from={bad}: must be names of services such as web,api, or * or none");
            assert_eq!(refusal(ALLOW_FROM_LABEL, bad), text);
        }
        for good in ["*", "none", "web", "web, app_api"] {
            check_service(&labels(ALLOW_FROM_LABEL, good)).unwrap();
        }
        assert_eq!((weight(&Labels::new()), weight(&labels(WEIGHT_LABEL, "10"))), (Ok(1), Ok(10)));
        for bad in ["0", "11", "-1", "2.5", ""] {
            let text = format!("label skep.balance.weight={bad}: must be a whole number from 1 to 10");
            assert_eq!(weight(&labels(WEIGHT_LABEL, bad)).unwrap_err().0, text);
        }
    }
}
