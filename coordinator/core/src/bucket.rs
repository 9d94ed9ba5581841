//! Which shard an account lives on: `bucket[bucket_of(account)]`.
//!
//! The hash is the first two bytes of SHA-256 of the id, so that anyone can compute it, in SQL too:
//! `(get_byte(sha256(id::bytea), 0) * 256 + get_byte(sha256(id::bytea), 1)) % 4096`.

use crate::AccountId;
use sha2::{Digest as _, Sha256};

/// How many buckets there are, for ever.
pub const BUCKETS: u16 = 4096;

/// The bucket of an account: 0 to 4095.
#[must_use]
pub fn bucket_of(account: &AccountId) -> u16 {
    let hash = Sha256::digest(account.as_str());
    u16::from_be_bytes([hash[0], hash[1]]) % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_of_an_account_never_changes() {
        let bucket = |id| bucket_of(&AccountId::parse(id).unwrap());

        assert_eq!(bucket("alice"), 0x2bd8 % 4096);
        assert_eq!(bucket("bob"), 0x81b6 % 4096);
    }
}
