//! What a caller attaches to a transaction: labels, and the key by which it may be asked for again.
//!
//! Both are checked once and trusted afterwards, and both are part of the descriptor, so every fence keeps them. That is how
//! keys survive a coordinator's database that forgot its last commits. What is not given takes no room.

use std::collections::BTreeMap;

/// Why something is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// More than 16, or more than 1,024 bytes.
    #[error("there may be at most 16 labels, and 1024 bytes of them")]
    TooMany,
    /// A key that is not a lower-case letter, then up to 62 of `a-z`, `0-9`, `_`, `.` and `-`.
    #[error("the key of a label is a lower-case letter, then up to 62 of a-z, 0-9, _, . and -")]
    Key,
    /// A value of more than 128 bytes.
    #[error("the value of a label has at most 128 bytes")]
    TooLong,
    /// A value with a control character.
    #[error("the value of a label has no control characters")]
    Control,
}

/// Keys and values for the caller's own purposes, in the order of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Checks their form.
    ///
    /// # Errors
    ///
    /// [`LabelError`], of the first key that is wrong.
    pub fn new(labels: impl IntoIterator<Item = (String, String)>) -> Result<Self, LabelError> {
        let labels: BTreeMap<String, String> = labels.into_iter().collect();
        if labels.len() > 16 {
            return Err(LabelError::TooMany);
        }
        for (key, value) in &labels {
            let form = |(n, byte): (usize, u8)| match byte {
                b'a'..=b'z' => true,
                b'0'..=b'9' | b'_' | b'.' | b'-' => n > 0,
                _ => false,
            };
            if !(1..=63).contains(&key.len()) || !key.bytes().enumerate().all(form) {
                return Err(LabelError::Key);
            }
            if value.len() > 128 {
                return Err(LabelError::TooLong);
            }
            if value.chars().any(char::is_control) {
                return Err(LabelError::Control);
            }
        }
        if labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > 1_024 {
            return Err(LabelError::TooMany);
        }
        Ok(Self(labels))
    }

    /// In the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether all of the others are among these.
    #[must_use]
    pub fn contain(&self, others: &Self) -> bool {
        others.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }

    /// As the descriptor encodes them.
    pub(crate) fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }
}

/// A key that a caller chose for a creation. Each caller has keys of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey {
    caller: String,
    key: String,
}

/// A text that is no key or no caller's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is 1 to 64 printable ASCII characters without spaces")]
pub struct KeyError;

impl IdempotencyKey {
    /// Checks the form. A caller without a name is "".
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn new(caller: &str, key: &str) -> Result<Self, KeyError> {
        if !(caller.is_empty() || is_name(caller)) || !is_name(key) {
            return Err(KeyError);
        }
        Ok(Self { caller: caller.to_owned(), key: key.to_owned() })
    }

    /// Whose key it is.
    #[must_use]
    pub fn caller(&self) -> &str {
        &self.caller
    }

    /// The key as the caller wrote it.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// Whether a text is 1 to 64 printable ASCII characters without spaces: a key, or a caller's name.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, LabelError> {
        Labels::new(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn labels_have_bounds() {
        let many: Vec<(String, String)> = (0..17).map(|n| (format!("k{n}"), String::new())).collect();
        let large: Vec<(String, String)> = (0..9).map(|n| (format!("k{n}"), "v".repeat(120))).collect();

        assert!(labels(&[("order_id", "4711"), ("guild.name", "Ärger 🐉"), ("empty", "")]).is_ok());
        assert_eq!(Labels::new(many[..16].to_vec()).map(|labels| labels.iter().count()), Ok(16));
        assert_eq!(Labels::new(many), Err(LabelError::TooMany));
        assert_eq!(Labels::new(large), Err(LabelError::TooMany));
        for key in ["", "A", "1a", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(labels(&[(key, "v")]), Err(LabelError::Key), "{key}");
        }
        assert_eq!(labels(&[("k", &"v".repeat(129))]), Err(LabelError::TooLong));
        for value in ["a\0", "a\n", "\u{85}"] {
            assert_eq!(labels(&[("k", value)]), Err(LabelError::Control), "{value:?}");
        }
    }

    #[test]
    fn labels_contain_what_is_among_them() {
        let all = labels(&[("a", "1"), ("b", "2")]).unwrap();

        assert!(all.contain(&labels(&[("b", "2")]).unwrap()));
        assert!(all.contain(&Labels::default()));
        assert!(!all.contain(&labels(&[("b", "3")]).unwrap()));
        assert!(!all.contain(&labels(&[("c", "")]).unwrap()));
    }

    #[test]
    fn a_key_is_a_name_of_a_caller_who_may_have_none() {
        assert!(IdempotencyKey::new("", "order-4711").is_ok());
        assert!(IdempotencyKey::new("shop", &"k".repeat(64)).is_ok());
        for wrong in ["", "a b", "a\0", "ä", &"k".repeat(65)] {
            assert_eq!(IdempotencyKey::new("shop", wrong), Err(KeyError), "{wrong:?}");
        }
        assert_eq!(IdempotencyKey::new("a b", "k"), Err(KeyError));
    }
}
