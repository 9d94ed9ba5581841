//! Page tokens: where a list goes on, bound to who asked for what.
//!
//! A token is a position and a hash of it together with the caller and the filter. The hash keeps nothing secret and gives
//! nobody a right, since each page is authorised like the first one. It makes sure that a token is used for the list that it
//! came from: with another filter it would skip what it should show.

use super::reason::{Violation, wrong};
use sha2::{Digest as _, Sha256};
use std::fmt::Debug;
use tcc_proto::Reason;
use uuid::Uuid;

/// Who lists what: a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter([u8; 32]);

impl Filter {
    /// Of everything but the page. Two filters are the same if their `Debug` is.
    pub fn new(caller: &str, filter: &impl Debug) -> Self {
        Self(Sha256::digest(format!("{caller:?} {filter:?}")).into())
    }

    /// The token for the page after a position.
    pub fn seal(&self, position: Uuid) -> String {
        let bytes = position.into_bytes().into_iter().chain(self.mark(position));
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    /// The position in a token.
    pub fn open(&self, token: &str) -> Result<Uuid, Violation> {
        let forged = || {
            let message =
                "is not from the page before; repeat that request with nothing but the token changed";
            wrong("page_token", Reason::PageTokenInvalid, message)
        };
        let position = token.get(..32).and_then(|hex| Uuid::try_parse(hex).ok()).ok_or_else(forged)?;
        if self.seal(position) == token { Ok(position) } else { Err(forged()) }
    }

    fn mark(&self, position: Uuid) -> impl Iterator<Item = u8> {
        let hash = Sha256::new().chain_update(self.0).chain_update(position.as_bytes()).finalize();
        <[u8; 32]>::from(hash).into_iter().take(16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_opens_with_its_own_filter_only(position: u128, caller in "[!-~]{0,64}", other in "[!-~]{0,64}") {
            let position = Uuid::from_u128(position);
            let token = Filter::new(&caller, &"payer=alice").seal(position);

            prop_assert_eq!(Filter::new(&caller, &"payer=alice").open(&token).unwrap(), position);
            prop_assert!(Filter::new(&caller, &"payer=bob").open(&token).is_err());
            if caller != other {
                prop_assert!(Filter::new(&other, &"payer=alice").open(&token).is_err());
            }
        }

        #[test]
        fn garbage_is_no_token(token in "\\PC*") {
            let refused = Filter::new("", &"payer=alice").open(&token).unwrap_err();

            prop_assert_eq!(refused.reason, Reason::PageTokenInvalid);
        }

        #[test]
        fn a_token_with_another_digit_is_none(position: u128, at in 0_usize..64, digit in "[0-9a-f]") {
            let filter = Filter::new("", &"payer=alice");
            let token = filter.seal(Uuid::from_u128(position));
            let mut forged = token.clone();
            forged.replace_range(at..=at, &digit);

            prop_assert_eq!(filter.open(&forged).is_ok(), forged == token);
        }
    }
}
