//! Paths inside containers, as words: nothing is looked up.

/// Go's `filepath.Clean` of an absolute path: what `..` leads to by the words alone.
pub fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn a_path_is_cleaned_and_never_leads_above_the_root() {
        assert_eq!(clean("/a//b/../c/."), "/a/c");
        assert_eq!(clean("/run/../../etc"), "/etc");
        assert_eq!(clean(""), "/");
    }
}
