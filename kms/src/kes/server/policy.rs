//! Who may call what: identities, and sets of path patterns.
//!
//! A path that a deny pattern matches is refused; otherwise an allow pattern has to match. A pattern that
//! ends in `*` matches whatever begins with the rest of it; any other one matches itself. An identity is
//! bound to one policy or to none, and with none everything is refused.

use std::collections::BTreeSet;

/// Whom the server takes for its administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity(String);

impl Identity {
    /// An identity from the configuration. A word that is no identity is nobody: that turns the admin off.
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn is(&self, identity: &str) -> bool {
        self.is_somebody() && self.0 == identity
    }

    /// Whether any certificate can have this identity.
    pub(crate) fn is_somebody(&self) -> bool {
        self.0.len() == 64
            && self
                .0
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) allow: BTreeSet<String>,
    pub(crate) deny: BTreeSet<String>,
    pub(crate) identities: BTreeSet<String>,
}

impl Policy {
    /// Whether a bearer of this policy may call `path`.
    pub(crate) fn allows(&self, path: &str) -> bool {
        let any =
            |patterns: &BTreeSet<String>| patterns.iter().any(|pattern| matches(pattern, path));
        !any(&self.deny) && any(&self.allow)
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => !pattern.is_empty() && pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let set = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Policy {
            allow: set(allow),
            deny: set(deny),
            identities: BTreeSet::new(),
        }
    }

    #[test]
    fn deny_first_then_allow() {
        let one = policy(
            &["/v1/key/*", "/v1/status"],
            &["/v1/key/delete/*", "/v1/key/create/no"],
        );
        for (path, want) in [
            ("/v1/key/create/a", true),
            ("/v1/key/create/no", false),
            ("/v1/key/create/nobody", true),
            ("/v1/key/delete/a", false),
            ("/v1/status", true),
            ("/v1/status/", false),
            ("/v1/ready", false),
        ] {
            assert_eq!(one.allows(path), want, "{path}");
        }
        assert!(!policy(&[], &[]).allows("/v1/status"));
        assert!(!policy(&[""], &[]).allows(""));
        assert!(policy(&["*"], &[]).allows("/v1/status"));
        assert!(!policy(&["/v1/*/a"], &[]).allows("/v1/key/a"));
        assert!(policy(&["/v1/*/a"], &[]).allows("/v1/*/a"));
    }

    #[test]
    fn a_word_is_nobody() {
        let nobody = Identity::new("disabled");
        assert!(!nobody.is("disabled"));
        let hex = "a".repeat(64);
        assert!(Identity::new(&hex).is(&hex));
        assert!(!Identity::new(&hex.to_uppercase()).is_somebody());
    }
}
