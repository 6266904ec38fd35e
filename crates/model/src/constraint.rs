//! The grammar of `--constraint` (swarmkit `manager/constraint`): `key == value`, `key != value`.

/// One expression, well formed. What its key means is the scheduler's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    pub key: String,
    /// `==`, else `!=`.
    pub equal: bool,
    pub value: String,
}

/// Keys begin with a letter or `_` and have two characters of letters, digits and `-_.` at the least.
fn is_key(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins && text.len() > 1 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_value(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || " \t\n\r\u{b}\u{c}:-_.*()?+[]\\^$|/".contains(c);
    !text.is_empty() && text.chars().all(fine)
}

impl std::str::FromStr for Constraint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As in swarmkit `==` is looked for first, wherever it stands.
        let split =
            |operator| text.split_once(operator).map(|(key, value)| (key.trim(), operator == "==", value.trim()));
        let (key, equal, value) =
            split("==").or_else(|| split("!=")).ok_or("constraint expected one operator from ==, !=")?;
        if !is_key(key) {
            return Err(format!("key '{key}' is invalid"));
        }
        if !is_value(value) {
            return Err(format!("value '{value}' is invalid"));
        }
        Ok(Self { key: key.to_owned(), equal, value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_constraint_is_refused_in_swarmkits_words() {
        for (bad, said) in [
            ("", "constraint expected one operator from ==, !="),
            ("node.id = x", "constraint expected one operator from ==, !="),
            ("== x", "key '' is invalid"),
            ("no de == x", "key 'no de' is invalid"),
            ("9x == x", "key '9x' is invalid"),
            ("a == x", "key 'a' is invalid"),
            ("node.id != x==y", "key 'node.id != x' is invalid"),
            ("node.id ==", "value '' is invalid"),
            ("node.labels.a==b!c", "value 'b!c' is invalid"),
            ("node.labels.a==b,c", "value 'b,c' is invalid"),
            ("node.labels.a==\"x\"", "value '\"x\"' is invalid"),
        ] {
            assert_eq!(bad.parse::<Constraint>().unwrap_err(), said, "{bad:?}");
        }
        for good in ["node.id==a b", "node.ip!=10.0.0.0/8", " node.labels.a-b_c == x:*()?+[]\\^$|/. "] {
            good.parse::<Constraint>().unwrap();
        }
    }
}
