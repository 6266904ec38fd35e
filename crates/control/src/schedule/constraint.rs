//! What a constraint asks of a node; all of a service's must hold.

use std::net::IpAddr;

use ipnet::IpNet;
use skep_model::constraint::Constraint;
use skep_model::node::{Node, Role};

/// A constraint with its key understood. Keys do not tell case apart, but for the names of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    subject: Subject,
    equal: bool,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Architecture,
    NodeLabel(String),
    EngineLabel(String),
    /// Holds on no node.
    Unknown,
}

impl From<Constraint> for Check {
    fn from(constraint: Constraint) -> Self {
        let Constraint { key, equal, value } = constraint;
        let label = |prefix: &str| match key.get(..prefix.len()) {
            Some(head) if head.eq_ignore_ascii_case(prefix) => Some(key[prefix.len()..].to_owned()),
            _ => None,
        };
        let subject = match key.to_lowercase().as_str() {
            "node.id" => Subject::Id,
            "node.hostname" => Subject::Hostname,
            "node.ip" => Subject::Ip,
            "node.role" => Subject::Role,
            "node.platform.os" => Subject::Os,
            "node.platform.arch" => Subject::Architecture,
            _ => match (label("node.labels."), label("engine.labels.")) {
                (Some(name), _) => Subject::NodeLabel(name),
                (_, Some(name)) => Subject::EngineLabel(name),
                (None, None) => Subject::Unknown,
            },
        };
        Self { subject, equal, value }
    }
}

impl Check {
    pub(super) fn holds(&self, node: &Node) -> bool {
        let description = &node.description;
        match &self.subject {
            Subject::Id => self.says(node.id.as_str()),
            Subject::Hostname => self.says(&description.hostname),
            Subject::Ip => self.says_address(node.status.address),
            Subject::Role => self.says(match node.role {
                Role::Manager => "manager",
                Role::Worker => "worker",
            }),
            Subject::Os => self.says(&description.os),
            Subject::Architecture => {
                (normal_architecture(&description.architecture) == normal_architecture(&self.value)) == self.equal
            }
            // A label that is not there has no value.
            Subject::NodeLabel(name) => self.says(node.spec.labels.get(name).map_or("", String::as_str)),
            Subject::EngineLabel(name) => self.says(description.engine_labels.get(name).map_or("", String::as_str)),
            Subject::Unknown => false,
        }
    }

    fn says(&self, actual: &str) -> bool {
        (actual.to_lowercase() == self.value.to_lowercase()) == self.equal
    }

    /// An address or a network; what is neither holds for no node.
    fn says_address(&self, actual: Option<IpAddr>) -> bool {
        if let Ok(address) = self.value.parse::<IpAddr>() {
            (actual == Some(address)) == self.equal
        } else if let Ok(network) = self.value.parse::<IpNet>() {
            actual.is_some_and(|a| network.contains(&a)) == self.equal
        } else {
            false
        }
    }
}

/// One word for each architecture, whoever named it: the kernel, Go, or a user.
pub(super) fn normal_architecture(text: &str) -> String {
    match text.to_lowercase().as_str() {
        "x86_64" => "amd64".into(),
        "aarch64" => "arm64".into(),
        "i386" | "i686" => "386".into(),
        "armv7l" | "armhf" => "arm".into(),
        other => other.into(),
    }
}
