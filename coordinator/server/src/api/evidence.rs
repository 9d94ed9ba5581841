//! Who asks for an action, from where, and why: what is recorded with it.

use super::reason::invalid;
use crate::store::Evidence;
use tonic::{Request, Status};

/// The longest reason, in bytes.
const MAX_REASON: usize = 500;
/// The longest ticket.
const MAX_TICKET: usize = 100;
/// The longest name of an actor.
const MAX_ACTOR: usize = 100;

/// What is recorded of whoever makes a request. Until callers are authenticated they name themselves, in the metadata
/// `tcc-caller`.
pub fn evidence<T>(request: &Request<T>, reason: &str, ticket: &str) -> Result<Evidence, Status> {
    let reason = reason.trim();
    if reason.is_empty() {
        return Err(invalid("reason", "FIELD_REQUIRED", "is required: say why, it is recorded"));
    }
    if reason.len() > MAX_REASON {
        return Err(invalid("reason", "FIELD_INVALID", format!("must have at most {MAX_REASON} bytes")));
    }
    if ticket.len() > MAX_TICKET {
        return Err(invalid("ticket", "FIELD_INVALID", format!("must have at most {MAX_TICKET} bytes")));
    }
    Ok(Evidence {
        actor: actor(request),
        address: request.remote_addr().map_or(String::new(), |address| address.to_string()),
        reason: reason.to_owned(),
        ticket: ticket.trim().to_owned(),
        plan: None,
    })
}

/// Who makes a request.
pub fn actor<T>(request: &Request<T>) -> String {
    let named = request.metadata().get("tcc-caller").and_then(|value| value.to_str().ok());
    let named = named.filter(|name| !name.is_empty() && name.len() <= MAX_ACTOR);
    named.unwrap_or("unnamed").to_owned()
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
