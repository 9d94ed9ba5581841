//! Where in somebody's traces a transaction came from: the context of the request that created it (W3C Trace Context), kept beside the
//! row, so that a payment days later can still be linked to it. It decides nothing, and a row that was rebuilt has none.

use super::{Store, StoreError};
use std::fmt;
use tcc_core::TransactionId;

const TRACE: &str = "\
-- trace
SELECT trace FROM transaction WHERE id = $1";

/// The context of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Which trace; not 0.
    pub trace: u128,
    /// Which span of it; not 0.
    pub span: u64,
    /// Whether it is recorded, in the lowest bit.
    pub flags: u8,
}

impl TraceContext {
    /// Reads the header `traceparent`. What is none is none: nobody is refused for it.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.trim().split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace, span, flags) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        // Versions to come may say more; 0 may not, and 255 is none.
        let is_whole = match version {
            0 => parts.next().is_none(),
            255 => false,
            _ => true,
        };
        let (span, flags) = (u64::try_from(span).ok()?, u8::try_from(flags).ok()?);
        (is_whole && trace != 0 && span != 0).then_some(Self { trace, span, flags })
    }

    /// As it is kept.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        [&self.trace.to_be_bytes()[..], &self.span.to_be_bytes(), &[self.flags]].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk()?;
        let (span, flags) = rest.split_first_chunk()?;
        let [flags] = *flags else { return None };
        Some(Self { trace: u128::from_be_bytes(*trace), span: u64::from_be_bytes(*span), flags })
    }
}

/// As in the header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Lower-case digits, so many of them.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then(|| u128::from_str_radix(text, 16).ok())?
}

impl Store {
    /// The context of the request that created a transaction, if it had one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn trace(&self, id: TransactionId) -> Result<Option<TraceContext>, StoreError> {
        let row = self.reader().await?.query_opt(TRACE, &[&id.uuid()]).await?;
        let kept: Option<Vec<u8>> = row.and_then(|row| row.get("trace"));
        Ok(kept.and_then(|kept| TraceContext::from_bytes(&kept)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_kept_as_it_came() {
        let context = TraceContext::parse(HEADER).unwrap();

        assert_eq!(context.to_string(), HEADER);
        assert_eq!(context.to_bytes().len(), 25);
        assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
    }

    #[test]
    fn what_is_no_context_is_none() {
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(wrong), None, "{wrong}");
        }
        assert!(
            TraceContext::parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some()
        );
    }
}
