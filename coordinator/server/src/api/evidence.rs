//! Who asks for an action, from where, and why: what is recorded with it.

use super::{
    convert::caller,
    reason::{Violation, wrong},
};
use crate::store::Evidence;
use tcc_proto::Reason;
use tonic::{Request, Status};

/// The longest reason, in bytes.
const MAX_REASON: usize = 500;
/// The longest ticket.
const MAX_TICKET: usize = 100;
/// How somebody without a name is recorded.
const UNNAMED: &str = "unnamed";

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
        actor: actor(request)?,
        address: request.remote_addr().map_or(String::new(), |address| address.to_string()),
        reason: reason.to_owned(),
        ticket: ticket.trim().to_owned(),
        plan: None,
    })
}

/// Who makes a request, for people.
pub fn actor<T>(request: &Request<T>) -> Result<String, Status> {
    let name = caller(request)?;
    Ok(if name.is_empty() { UNNAMED.to_owned() } else { name })
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
    fn who_does_it_is_recorded_as_far_as_it_is_known() {
        let mut request = Request::new(());
        assert_eq!(evidence(&request, " why ", " T-1 ").unwrap().actor, "unnamed");

        request.metadata_mut().insert("tcc-caller", "carol".parse().unwrap());

        let evidence = evidence(&request, " why ", " T-1 ").unwrap();
        assert_eq!((evidence.actor.as_str(), evidence.reason.as_str()), ("carol", "why"));
        assert_eq!(evidence.ticket, "T-1");
    }
}
