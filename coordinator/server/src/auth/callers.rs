//! `callers.toml`: callers that an installation knows by API key or by certificate.
//!
//! An API key is 256 random bits, so its SHA-256 says nothing about it and needs no salt: the file may be read by whoever may
//! read the configuration. A caller may have several keys, which is how one is replaced: add, deploy, remove.

use super::identity::{Accounts, Identity, Role};
use crate::{
    config::{ConfigError, parse_toml},
    watched::WatchError,
};
use rustls::crypto::aws_lc_rs;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

/// What every API key begins with, so that it is found where it should not be.
const PREFIX: &str = "tcc_";
/// So many random bytes follow, in hexadecimal.
const RANDOM: usize = 32;
/// What a hash begins with.
const HASH: &str = "sha256:";

/// A SHA-256.
pub type Hash = [u8; 32];

/// The callers of a file.
#[derive(Debug, Default)]
pub struct Callers {
    by_key: HashMap<Hash, Arc<Identity>>,
    by_certificate: HashMap<String, Arc<Identity>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "caller")]
    callers: Vec<Caller>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Caller {
    name: String,
    roles: Vec<String>,
    #[serde(default)]
    accounts: Vec<String>,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    certificates: Vec<String>,
    open_transactions: Option<u32>,
}

impl Callers {
    /// Reads a file's contents; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`WatchError::Content`].
    pub fn read(path: &Path, contents: &[u8]) -> Result<Self, WatchError> {
        let wrong = |what: String| WatchError::content(path, what);
        let text = std::str::from_utf8(contents).map_err(|error| wrong(error.to_string()))?;
        let file: File = parse_toml("", text).map_err(|error| match error {
            ConfigError::Syntax { line, what, .. } => wrong(format!("line {line}: {what}")),
            other => wrong(other.to_string()),
        })?;
        let (mut callers, mut names) = (Self::default(), HashSet::new());
        for caller in file.callers {
            let name = caller.name.clone();
            if !is_name(&name) {
                let what = "a name is 1 to 64 lower-case letters, digits, dots, dashes and underscores";
                return Err(wrong(format!("caller {name:?}: {what}")));
            }
            if !names.insert(name.clone()) {
                return Err(wrong(format!("two callers are called {name:?}")));
            }
            callers.add(caller).map_err(|what| wrong(format!("caller {name:?}: {what}")))?;
        }
        Ok(callers)
    }

    fn add(&mut self, caller: Caller) -> Result<(), String> {
        let roles: Result<Vec<Role>, _> = caller.roles.iter().map(|role| role.parse()).collect();
        let roles = roles.map_err(|error: super::identity::UnknownRole| error.to_string())?;
        if roles.contains(&Role::Application) && caller.accounts.is_empty() {
            return Err("an application needs accounts: ids, prefixes that end in *, or \"*\"".into());
        }
        if caller.keys.is_empty() && caller.certificates.is_empty() {
            return Err("it has neither keys nor certificates, so nobody can be it".into());
        }
        let accounts: Accounts = caller.accounts.iter().collect();
        let open_transactions = caller.open_transactions;
        let identity = Arc::new(Identity { caller: caller.name, roles, accounts, open_transactions });
        for key in &caller.keys {
            let hash = parse_hash(key)
                .ok_or("a key is not \"sha256:\" and 64 hexadecimal digits; run tccd new-key")?;
            if self.by_key.insert(hash, Arc::clone(&identity)).is_some() {
                return Err("one of its keys stands in the file twice".into());
            }
        }
        for name in caller.certificates {
            if self.by_certificate.insert(name.clone(), Arc::clone(&identity)).is_some() {
                return Err(format!("certificate {name:?} stands in the file twice"));
            }
        }
        Ok(())
    }

    /// Whose API key this is.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Option<Arc<Identity>> {
        is_key(key).then(|| self.by_key.get(&hash(key)).cloned())?
    }

    /// Whose certificate has one of these names.
    #[must_use]
    pub fn with_certificate(&self, names: &[String]) -> Option<Arc<Identity>> {
        names.iter().find_map(|name| self.by_certificate.get(name).cloned())
    }
}

/// Whether a credential has the form of an API key.
#[must_use]
pub fn is_key(credential: &str) -> bool {
    let random = credential.strip_prefix(PREFIX);
    random.is_some_and(|hex| hex.len() == 2 * RANDOM && hex.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Makes an API key. Answers it, and what stands in the file.
///
/// # Panics
///
/// If the system has no random numbers.
#[must_use]
pub fn new_key() -> (String, String) {
    let mut random = [0; RANDOM];
    let provider = aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut random).expect("the system has random numbers");
    let key = format!("{PREFIX}{}", hex(&random));
    let hash = format!("{HASH}{}", hex(&hash(&key)));
    (key, hash)
}

/// The hash by which a credential is remembered.
#[must_use]
pub fn hash(credential: &str) -> Hash {
    Sha256::digest(credential).into()
}

fn is_name(name: &str) -> bool {
    let is_part = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
    (1..=64).contains(&name.len()) && name.bytes().all(is_part)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_hash(text: &str) -> Option<Hash> {
    let digits = text.strip_prefix(HASH)?;
    let mut hash = [0; 32];
    if digits.len() != 2 * hash.len() || !digits.is_ascii() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Callers, String> {
        Callers::read(Path::new("callers.toml"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_caller_is_found_by_each_of_its_keys_and_certificates() {
        let ((first, first_hash), (second, second_hash)) = (new_key(), new_key());
        let text = format!(
            "[[caller]]\nname = \"orders\"\nroles = [\"application\"]\naccounts = [\"user-*\"]\n\
             keys = [\"{first_hash}\", \"{second_hash}\"]\ncertificates = [\"orders.internal\"]\n"
        );

        let callers = read(&text).unwrap();

        for key in [&first, &second] {
            assert_eq!(callers.with_key(key).unwrap().caller, "orders");
        }
        let names = ["other".to_owned(), "orders.internal".to_owned()];
        assert_eq!(callers.with_certificate(&names).unwrap().caller, "orders");
        assert!(callers.with_key(&new_key().0).is_none());
        assert!(callers.with_key(&first_hash).is_none(), "what stands in the file is no key");
        assert!(callers.with_certificate(&["orders.internal.evil".to_owned()]).is_none());
    }

    #[test]
    fn keys_differ_and_have_a_form() {
        let keys: HashSet<String> = (0..100).map(|_| new_key().0).collect();

        assert_eq!(keys.len(), 100);
        assert!(keys.iter().all(|key| is_key(key) && key.len() == 68));
        for other in ["tcc_", "", "tcc_00", &"x".repeat(68), &format!("tcc_{}", "g".repeat(64))] {
            assert!(!is_key(other), "{other}");
        }
    }

    #[test]
    fn a_wrong_file_is_refused_and_says_where() {
        let caller =
            |rest: &str| read(&format!("[[caller]]\nname = \"a\"\n{rest}")).err().unwrap_or_default();
        let key = new_key().1;

        assert!(caller("roles = [\"admin\"]\nkeys = []").contains("there is no role \"admin\""));
        assert!(caller("roles = [\"viewer\"]").contains("neither keys nor certificates"));
        assert!(caller(&format!("roles = [\"application\"]\nkeys = [\"{key}\"]")).contains("needs accounts"));
        assert!(caller("roles = [\"viewer\"]\nkeys = [\"sha256:00\"]").contains("tccd new-key"));
        let twice = format!("roles = [\"viewer\"]\nkeys = [\"{key}\", \"{key}\"]");
        assert!(caller(&twice).contains("twice"));
        assert!(read("[[caller]]\nname = \"A B\"\nroles = []").err().unwrap().contains("lower-case"));
        assert!(read("[[callers]]\nname = \"a\"").err().unwrap().contains("did you mean `caller`"));
    }

    #[test]
    fn a_key_that_was_pasted_instead_of_its_hash_is_not_repeated() {
        let (key, _) = new_key();

        let error =
            read(&format!("[[caller]]\nname = \"a\"\nroles = [\"viewer\"]\nkeys = [\"{key}\"]")).err();

        assert!(!error.unwrap().contains(&key));
    }
}
