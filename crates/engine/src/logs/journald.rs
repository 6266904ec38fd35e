//! Lines as entries of systemd's journal: its native protocol, one datagram of `KEY=value` lines an entry
//! (systemd `docs/JOURNAL_NATIVE_PROTOCOL.md`), with Docker's names of fields.

use std::collections::BTreeMap;

use crate::container::{ContainerRecord, StdStream};

pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Journald {
    /// What stands in every entry.
    fields: Vec<u8>,
}

impl Journald {
    pub(super) fn new(record: &ContainerRecord, tag: &str, attributes: &BTreeMap<String, String>) -> Self {
        let mut all = BTreeMap::from([
            ("CONTAINER_ID".to_owned(), record.id.short()),
            ("CONTAINER_ID_FULL".to_owned(), record.id.as_str()),
            ("CONTAINER_NAME".to_owned(), &record.name),
            ("CONTAINER_TAG".to_owned(), tag),
            ("IMAGE_NAME".to_owned(), &record.config.image),
            ("SYSLOG_IDENTIFIER".to_owned(), tag),
        ]);
        all.extend(attributes.iter().map(|(name, value)| (field_name(name), value.as_str())));
        let mut fields = Vec::new();
        for (name, value) in &all {
            put(&mut fields, name, value.as_bytes());
        }
        Self { fields }
    }

    /// `line` without its newline; `partial` if it had none.
    pub(super) fn entry(&self, stream: StdStream, line: &[u8], partial: bool) -> Vec<u8> {
        let mut entry = Vec::with_capacity(line.len() + self.fields.len() + 64);
        put(&mut entry, "PRIORITY", if stream == StdStream::Stderr { b"3" } else { b"6" });
        put(&mut entry, "MESSAGE", line);
        if partial {
            put(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        entry.extend_from_slice(&self.fields);
        entry
    }
}

fn put(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// Capitals, digits and underscores, of which none comes first (moby `sanitizeKeyMod`).
fn field_name(name: &str) -> String {
    let mapped: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    mapped.trim_start_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_journal_reads_them() {
        let mut fields = Vec::new();
        put(&mut fields, &field_name("_a.b-1"), b"two\nlines");
        let entry = Journald { fields }.entry(StdStream::Stderr, b"hi", true);
        assert_eq!(
            entry,
            b"PRIORITY=3\nMESSAGE=hi\nCONTAINER_PARTIAL_MESSAGE=true\nA_B_1\n\x09\0\0\0\0\0\0\0two\nlines\n"
        );
    }
}
