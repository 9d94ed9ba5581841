//! Who asks for an action, from where, and why: what is recorded with it.

use super::reason::{Violation, wrong};
use crate::{
    auth::{Peer, identity},
    store::Evidence,
};
use tcc_proto::Reason;
use tonic::{Request, Status};

/// The longest reason, in bytes.
const MAX_REASON: usize = 500;
/// The longest ticket.
const MAX_TICKET: usize = 100;

/// What is recorded of whoever makes a request.
pub fn evidence<T>(request: &Request<T>, reason: &str, ticket: &str) -> Result<Evidence, Status> {
    let reason = reason.trim();
    if reason.is_empty() {
        let message = "is required: say why, it is recorded";
        return Err(wrong("reason", Reason::FieldRequired, message).into());
    }
    at_most("reason", reason, MAX_REASON)?;
    at_most("ticket", ticket, MAX_TICKET)?;
    Ok(Evidence {
        actor: identity(request).caller.clone(),
        address: request.extensions().get::<Peer>().map_or(String::new(), |peer| peer.address.to_string()),
        reason: reason.to_owned(),
        ticket: ticket.trim().to_owned(),
        plan: None,
    })
}

/// Whether a text is as short as it must be.
pub fn at_most(field: &str, text: &str, most: usize) -> Result<(), Violation> {
    if text.len() > most {
        return Err(wrong(field, Reason::FieldInvalid, format!("must have at most {most} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Identity;
    use std::sync::Arc;

    #[test]
    fn nothing_is_done_without_a_reason() {
        let request = Request::new(());

        for empty in ["", "   ", "\n"] {
            assert_eq!(evidence(&request, empty, "").unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        assert!(evidence(&request, &"x".repeat(MAX_REASON + 1), "").is_err());
        assert!(evidence(&request, "x", &"x".repeat(MAX_TICKET + 1)).is_err());
    }

    #[test]
    fn who_does_it_is_recorded_by_the_name_that_was_proved_and_by_no_other() {
        let mut request = Request::new(());
        request.extensions_mut().insert(Arc::new(Identity::developer("carol")));
        request.extensions_mut().insert(Peer { address: ([10, 0, 0, 7], 4711).into(), names: None });
        request.metadata_mut().insert("tcc-caller", "dave".parse().unwrap());

        let evidence = evidence(&request, " why ", " T-1 ").unwrap();

        assert_eq!((evidence.actor.as_str(), evidence.address.as_str()), ("carol", "10.0.0.7:4711"));
        assert_eq!((evidence.reason.as_str(), evidence.ticket.as_str()), ("why", "T-1"));
    }
}
