//! The API's filters (`{"label": ["a=b"]}`) and the shell patterns in them.

use skep_model::{Labels, Timestamp};

use super::Filters;

/// Reads a filter set and refuses what an endpoint does not know, in moby's words.
pub(crate) struct Filter<'a> {
    filters: &'a Filters,
}

impl<'a> Filter<'a> {
    pub(crate) fn new(filters: &'a Filters, accepted: &[&str]) -> Result<Self, String> {
        match filters.keys().find(|key| !accepted.contains(&key.as_str())) {
            Some(key) => Err(format!("invalid filter '{key}'")),
            None => Ok(Self { filters }),
        }
    }

    pub(crate) fn values(&self, key: &str) -> &'a [String] {
        self.filters.get(key).map_or(&[], Vec::as_slice)
    }

    /// A filter that is true or false; both together, or another word, is refused.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.values(key) {
            [] => Ok(default),
            values if values.iter().all(|v| v == "1" || v == "true") => Ok(true),
            values if values.iter().all(|v| v == "0" || v == "false") => Ok(false),
            values => Err(format!("invalid filter '{key}={values:?}'")),
        }
    }

    /// `label=k`, `label=k=v` must all match; `label!=…` must not.
    pub(crate) fn labels_match(&self, labels: &Labels) -> bool {
        let matches = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").iter().all(matches) && !self.values("label!").iter().any(matches)
    }

    /// The instant of `until`: a timestamp, Unix seconds, or a duration back from now.
    pub(crate) fn until(&self, now: Timestamp) -> Result<Option<Timestamp>, String> {
        match self.values("until") {
            [] => Ok(None),
            [text] => parse_instant(text, now).map(Some).ok_or_else(|| format!("invalid filter 'until={text}'")),
            _ => Err("more than one until filter specified".to_owned()),
        }
    }
}

fn parse_instant(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(seconds) = text.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, reason = "seconds of a date")]
        return Some(Timestamp((seconds * 1e9) as i64));
    }
    if let Some(instant) = Timestamp::parse_rfc3339(text) {
        return Some(instant);
    }
    if let Some(instant) =
        Timestamp::parse_rfc3339(&format!("{text}T00:00:00Z")).or_else(|| Timestamp::parse_rfc3339(&format!("{text}Z")))
    {
        return Some(instant);
    }
    Some(Timestamp(now.0.saturating_sub(parse_duration(text)?)))
}

/// Go's `time.ParseDuration` for `24h`, `1h30m`, `90s`, in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        total += number
            * match &rest[digits..unit_end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    #[expect(clippy::cast_possible_truncation, reason = "a duration a person typed")]
    (!text.is_empty()).then_some(total as i64)
}

/// Go's `path.Match`: `*` and `?` do not match a slash; `[a-z]` and `[^a-z]` are classes; `\` quotes.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    fn go(pattern: &[char], text: &[char]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some('*'), _) => {
                let mut at = 0;
                loop {
                    if go(&pattern[1..], &text[at..]) {
                        return true;
                    }
                    if text.get(at).is_none_or(|&c| c == '/') {
                        return false;
                    }
                    at += 1;
                }
            }
            (Some('?'), Some(&c)) => c != '/' && go(&pattern[1..], &text[1..]),
            (Some('['), Some(&c)) => match class(&pattern[1..], c) {
                Some((true, rest)) => go(rest, &text[1..]),
                _ => false,
            },
            (Some('\\'), Some(c)) => pattern.get(1) == Some(c) && go(&pattern[2..], &text[1..]),
            (Some(p), Some(c)) => p == c && go(&pattern[1..], &text[1..]),
            _ => false,
        }
    }
    fn class(mut pattern: &[char], c: char) -> Option<(bool, &[char])> {
        let negated = pattern.first() == Some(&'^');
        pattern = if negated { &pattern[1..] } else { pattern };
        let mut found = false;
        loop {
            let (&low, rest) = pattern.split_first()?;
            if low == ']' {
                return Some((found != negated, rest));
            }
            let (high, rest) = match rest {
                ['-', high, rest @ ..] if *high != ']' => (*high, rest),
                rest => (low, rest),
            };
            found |= (low..=high).contains(&c);
            pattern = rest;
        }
    }
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    go(&pattern, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_gos() {
        for (pattern, text, expected) in [
            ("nginx*", "nginx:latest", true),
            ("*", "a/b", false),
            ("*/b", "a/b", true),
            ("b?sybox", "busybox", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("nginx", "nginx:latest", false),
            ("", "", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn until_takes_instants_and_durations() {
        let now = Timestamp::from_secs(10_000);
        for (text, seconds) in [("1h30m", 4600), ("5000", 5000), ("1970-01-01T00:00:09Z", 9), ("1970-01-01", 0)] {
            let filters = Filters::from([("until".to_owned(), vec![text.to_owned()])]);
            let until = Filter::new(&filters, &["until"]).ok().unwrap().until(now).unwrap();
            assert_eq!(until, Some(Timestamp::from_secs(seconds)), "{text}");
        }
        let filters = Filters::from([("until".to_owned(), vec!["soon".to_owned()])]);
        assert!(Filter::new(&filters, &["until"]).ok().unwrap().until(now).is_err());
        assert_eq!(Filter::new(&filters, &[]).err().unwrap(), "invalid filter 'until'");
    }
}
