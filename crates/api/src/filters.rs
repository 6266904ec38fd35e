//! The `filters` query parameter, in both JSON forms clients have used, and how moby matches with it.

use std::collections::{BTreeMap, BTreeSet};

use skep_model::Labels;

use crate::ConvertError;

/// Key to accepted values; a key without values filters nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads `{"name":["web"]}` or the older `{"name":{"web":true}}`; empty text is no filter.
    pub fn parse(text: &str) -> Result<Self, ConvertError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let bad = || ConvertError::Invalid("invalid filter".into());
        let value: serde_json::Value = serde_json::from_str(text).map_err(|_| bad())?;
        let serde_json::Value::Object(object) = value else {
            return if value.is_null() { Ok(Self::default()) } else { Err(bad()) };
        };
        let mut filters = Self::default();
        for (key, values) in object {
            let entry = filters.0.entry(key).or_default();
            match values {
                serde_json::Value::Array(list) => {
                    for item in list {
                        entry.insert(item.as_str().ok_or_else(bad)?.to_owned());
                    }
                }
                serde_json::Value::Object(set) => {
                    entry.extend(set.into_iter().filter(|(_, on)| on.as_bool() == Some(true)).map(|(value, _)| value));
                }
                serde_json::Value::Null => {}
                _ => return Err(bad()),
            }
        }
        filters.0.retain(|_, values| !values.is_empty());
        Ok(filters)
    }

    /// Refuses keys that are not in `accepted`, as moby does.
    pub fn validate(&self, accepted: &[&str]) -> Result<(), ConvertError> {
        match self.0.keys().find(|key| !accepted.contains(&key.as_str())) {
            Some(key) => ConvertError::invalid(format!("invalid filter '{key}'")),
            None => Ok(()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn get(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Keys and values, for handing on.
    pub fn entries(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = &str>)> {
        self.0.iter().map(|(key, values)| (key.as_str(), values.iter().map(String::as_str)))
    }

    /// True if the key is not filtered on, or one of its values is `value`.
    pub fn exact(&self, key: &str, value: &str) -> bool {
        self.0.get(key).is_none_or(|values| values.contains(value))
    }

    /// True if the key is not filtered on, or one of its values begins `value` (ids).
    pub fn prefix(&self, key: &str, value: &str) -> bool {
        self.0.get(key).is_none_or(|values| values.iter().any(|wanted| value.starts_with(wanted.as_str())))
    }

    /// True if the key is not filtered on, or one of its values occurs in `value` (names).
    pub fn substring(&self, key: &str, value: &str) -> bool {
        self.0.get(key).is_none_or(|values| values.iter().any(|wanted| value.contains(wanted.as_str())))
    }

    /// True if every `k` or `k=v` of the key's values is met by `labels`.
    pub fn labels(&self, key: &str, labels: &Labels) -> bool {
        self.get(key).all(|wanted| match wanted.split_once('=') {
            Some((k, v)) => labels.get(k).is_some_and(|have| have == v),
            None => labels.contains_key(wanted),
        })
    }

    /// A yes-or-no filter: `dangling=true`. Absent gives `None`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ConvertError> {
        let mut values = self.get(key);
        let Some(first) = values.next() else { return Ok(None) };
        let read = |text: &str| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        };
        match (read(first), values.next()) {
            (Some(on), None) => Ok(Some(on)),
            _ => ConvertError::invalid(format!("invalid filter '{key}={first}'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        let list = Filters::parse(r#"{"name":["web","db"]}"#).unwrap();
        let set = Filters::parse(r#"{"name":{"web":true,"db":true}}"#).unwrap();
        assert_eq!(list, set);
        assert_eq!(list.get("name").collect::<Vec<_>>(), ["db", "web"]);
        assert_eq!(Filters::parse("").unwrap(), Filters::default());
        assert!(Filters::parse("[]").is_err() && Filters::parse(r#"{"a":1}"#).is_err());
    }

    #[test]
    fn matching() {
        let f = Filters::parse(r#"{"label":["a=1","b"],"id":["abc"],"dangling":["true"]}"#).unwrap();
        let labels: Labels = [("a".into(), "1".into()), ("b".into(), "x".into())].into();
        assert!(f.labels("label", &labels));
        assert!(!f.labels("label", &[("a".into(), "1".into())].into()));
        assert!(f.prefix("id", "abcdef") && !f.prefix("id", "xabc"));
        assert!(f.exact("name", "anything"));
        assert_eq!(f.flag("dangling").unwrap(), Some(true));
        assert_eq!(f.validate(&["label", "id"]).unwrap_err().to_string(), "invalid filter 'dangling'");
    }
}
