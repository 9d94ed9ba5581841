//! Transaction ids: UUIDv7 and nothing else.
//!
//! Their first 48 bits are the time of creation in milliseconds, so new rows go to the right edge of every index and a
//! partition can be found from the id alone.

use crate::Timestamp;
use std::fmt;
use uuid::{Uuid, Variant};

/// The id of one global transaction, and the idempotency key of whoever chose it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(Uuid);

/// Why a text or a UUID is no transaction id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 36 characters of the canonical form `xxxxxxxx-xxxx-7xxx-yxxx-xxxxxxxxxxxx` in lower case.
    #[error("not a UUID in canonical lower-case form")]
    NotCanonical,
    /// A UUID of another version or variant.
    #[error("not a UUID of version 7 (RFC 9562)")]
    NotVersion7,
}

impl TransactionId {
    /// Reads the one accepted text form: canonical, lower case, version 7.
    ///
    /// # Errors
    ///
    /// [`IdError`]; braces, `urn:`, upper case and surrounding space are refused.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let uuid = Uuid::try_parse(text).map_err(|_| IdError::NotCanonical)?;
        if uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()) != text {
            return Err(IdError::NotCanonical);
        }
        Self::from_uuid(uuid)
    }

    /// Accepts a UUID of version 7.
    ///
    /// # Errors
    ///
    /// [`IdError::NotVersion7`] for any other.
    pub fn from_uuid(uuid: Uuid) -> Result<Self, IdError> {
        if uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122 {
            Ok(Self(uuid))
        } else {
            Err(IdError::NotVersion7)
        }
    }

    /// Makes an id of a time and 80 random bits, of which 74 are used.
    #[must_use]
    pub fn mint(time: Timestamp, random: [u8; 10]) -> Self {
        let millis = u64::try_from(time.as_millisecond()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// When it was made, by its own account: milliseconds.
    #[must_use]
    pub fn time(self) -> Timestamp {
        let bytes = self.0.as_bytes();
        let millis = bytes[..6].iter().fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }

    /// As a plain UUID, for SQL.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_id_keeps_its_time_and_reads_back() {
        let time = Timestamp::from_millisecond(1_790_000_000_123).unwrap();
        let id = TransactionId::mint(time, [7; 10]);

        assert_eq!(id.time(), time);
        assert_eq!(TransactionId::parse(&id.to_string()), Ok(id));
        assert_eq!(id.uuid().to_string(), id.to_string());
    }

    #[test]
    fn only_the_canonical_form_of_version_7_is_an_id() {
        let canonical = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";
        assert!(TransactionId::parse(canonical).is_ok());

        for wrong in [
            "",
            "019B2C3D-4E5F-7A6B-8C9D-0E1F2A3B4C5D",
            "019b2c3d4e5f7a6b8c9d0e1f2a3b4c5d",
            "{019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d}",
            "urn:uuid:019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d",
            " 019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d",
        ] {
            assert_eq!(TransactionId::parse(wrong), Err(IdError::NotCanonical), "{wrong}");
        }
        for wrong in [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "019b2c3d-4e5f-4a6b-8c9d-0e1f2a3b4c5d",
            "019b2c3d-4e5f-7a6b-0c9d-0e1f2a3b4c5d",
        ] {
            assert_eq!(TransactionId::parse(wrong), Err(IdError::NotVersion7), "{wrong}");
        }
    }
}
