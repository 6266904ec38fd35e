//! `--constraint`: `key == value` and `key != value`, all of which must hold (swarmkit `manager/constraint`).

use std::net::IpAddr;

use ipnet::IpNet;
use skep_model::node::{Node, Role};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Constraint {
    key: String,
    equal: bool,
    value: String,
}

/// swarmkit's grammar: keys of letters, digits and `-._`; values also with spaces and `:*()?+[]\^$|/@`.
pub(super) fn parse(text: &str) -> Result<Constraint, String> {
    // The first operator counts.
    let at = [text.find("=="), text.find("!=")].into_iter().flatten().min();
    let at = at.ok_or_else(|| format!("constraint expected one operator from ==, !=: {text}"))?;
    let (key, value) = (text[..at].trim(), text[at + 2..].trim());
    let fine = |c: char| c.is_alphanumeric() || "-._".contains(c);
    if key.is_empty() || !key.chars().all(fine) || !key.starts_with(|c: char| c.is_alphabetic() || c == '_') {
        return Err(format!("key '{key}' is invalid"));
    }
    if value.is_empty() {
        return Err(format!("value '{value}' is invalid"));
    }
    Ok(Constraint { key: key.to_owned(), equal: &text[at..at + 2] == "==", value: value.to_owned() })
}

impl Constraint {
    pub(super) fn holds(&self, node: &Node) -> bool {
        let description = &node.description;
        let key = self.key.to_lowercase();
        match key.as_str() {
            "node.id" => self.says(node.id.as_str()),
            "node.hostname" => self.says(&description.hostname),
            "node.ip" => self.says_address(node.status.address),
            "node.role" => self.says(match node.role {
                Role::Manager => "manager",
                Role::Worker => "worker",
            }),
            "node.platform.os" => self.says(&description.os),
            "node.platform.arch" => self.says_architecture(&description.architecture),
            // Keys of labels are case-sensitive; a label that is not there has no value.
            _ => match (self.suffix("node.labels."), self.suffix("engine.labels.")) {
                (Some(label), _) => self.says(node.spec.labels.get(label).map_or("", String::as_str)),
                (_, Some(label)) => self.says(description.engine_labels.get(label).map_or("", String::as_str)),
                (None, None) => false,
            },
        }
    }

    fn suffix(&self, prefix: &str) -> Option<&str> {
        let head = self.key.get(..prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then(|| &self.key[prefix.len()..])
    }

    fn says(&self, actual: &str) -> bool {
        (actual.to_lowercase() == self.value.to_lowercase()) == self.equal
    }

    fn says_architecture(&self, actual: &str) -> bool {
        (normal_architecture(actual) == normal_architecture(&self.value)) == self.equal
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
