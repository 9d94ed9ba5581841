//! `tccctl holds`: show, watch, list, pay and cancel holds.
//!
//! A cancel is done when the answer says CANCELLED. CANCELLING means that the payee's shard has not answered yet and that
//! the hold may still turn out to be paid, so it exits as an unknown outcome does. A watch polls, because holds may stand
//! for months and a poll survives restarts of the server. It keeps out what may follow which phase: every phase that the
//! server shows is printed.

use crate::{
    errors::{Exit, Failure},
    output::{Amount, Output, fields, name, or_dash, rows, time},
    session::Session,
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, time::Duration};
use tcc_proto::v1::{self, Attention, Cause, OnMaturity, Phase, hold_service_client::HoldServiceClient};
use tokio::time::Instant;
use uuid::Uuid;

/// A watch asks again after this time, doubled each time until something new is seen,
const POLL_FIRST: Duration = Duration::from_millis(100);
/// up to this one.
const POLL_LAST: Duration = Duration::from_secs(1);
/// The most holds that the server gives at once.
const PAGE: u32 = 1_000;

/// Shows a hold.
pub async fn get(session: &Session, output: &Output, id: Uuid) -> Result<Exit, Box<Failure>> {
    let mut client = HoldServiceClient::new(session.connect().await?);
    let answer = client.get_hold(session.request(v1::GetHoldRequest { id: id.to_string() })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Hold::of_answer(answer.hold)?)?;
    Ok(Exit::Done)
}

/// Prints each new phase of a hold until it is final.
///
/// Once it has seen the hold it bears with a server that does not answer, but not for longer than the timeout of a call.
pub async fn watch(session: &Session, output: &Output, id: Uuid) -> Result<Exit, Box<Failure>> {
    let mut client = HoldServiceClient::new(session.connect().await?);
    let mut seen: Option<Hold> = None;
    let mut answered = Instant::now();
    let mut delay = POLL_FIRST;
    loop {
        match client.get_hold(session.request(v1::GetHoldRequest { id: id.to_string() })).await {
            Ok(answer) => {
                answered = Instant::now();
                let hold = Hold::of_answer(answer.into_inner().hold)?;
                if seen.as_ref().is_none_or(|seen| seen.phase != hold.phase) {
                    output.show(&Step(&hold))?;
                    delay = POLL_FIRST;
                }
                if seen.as_ref().map_or("NONE", |seen| &seen.attention) != hold.attention {
                    output.remark(&format!("attention {}", hold.attention));
                }
                if hold.is_final() {
                    return Ok(Exit::Done);
                }
                seen = Some(hold);
            }
            Err(status) => {
                let failure = session.failure(status);
                let bearable = failure.exit == Exit::Unknown && answered.elapsed() < session.timeout();
                if seen.is_none() || !bearable {
                    return Err(failure);
                }
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(POLL_LAST);
    }
}

/// Lists holds, page by page, up to a limit.
pub async fn list(
    session: &Session,
    output: &Output,
    mut request: v1::ListHoldsRequest,
    limit: u32,
) -> Result<Exit, Box<Failure>> {
    let mut client = HoldServiceClient::new(session.connect().await?);
    let mut found = List { holds: Vec::new(), more: false };
    // A token is good for a page of any size.
    loop {
        let left = limit - found.holds.len() as u32;
        request.page_size = left.min(PAGE) as i32;
        let page = client.list_holds(session.request(request.clone())).await;
        let page = page.map_err(|status| session.failure(status))?.into_inner();
        found.holds.extend(page.holds.into_iter().map(Hold::from));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() || found.holds.len() as u32 >= limit {
            break;
        }
    }
    found.more = !request.page_token.is_empty();
    output.show_list(&found, "holds")?;
    if found.more {
        output.remark("there may be more: raise --limit, or bound the list with --until");
    }
    Ok(Exit::Done)
}

/// Asks for the release of the funds.
pub async fn cancel(session: &Session, output: &Output, id: Uuid) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let mut client = HoldServiceClient::new(session.connect().await?);
    let request = v1::CancelHoldRequest { id: id.to_string(), etag: String::new() };
    let answer = client.cancel_hold(session.request(request)).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let hold = Hold::of_answer(answer.hold)?;
    output.show(&hold)?;
    if hold.phase == phase_name(Phase::Cancelled.into()) {
        return Ok(Exit::Done);
    }
    output.remark(&format!(
        "it is not known yet whether it is cancelled; see with: tccctl holds get {id} --watch"
    ));
    Ok(Exit::Unknown)
}

/// Asks for the payment, now.
pub async fn confirm(session: &Session, output: &Output, id: Uuid) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let mut client = HoldServiceClient::new(session.connect().await?);
    let request = v1::ConfirmHoldRequest { id: id.to_string(), etag: String::new() };
    let answer = client.confirm_hold(session.request(request)).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let hold = Hold::of_answer(answer.hold)?;
    output.show(&hold)?;
    if hold.phase == phase_name(Phase::Confirmed.into()) {
        return Ok(Exit::Done);
    }
    output.remark(&format!("it is not known yet whether it is paid; see with: tccctl holds watch {id}"));
    Ok(Exit::Unknown)
}

/// A hold, as every command shows it.
#[derive(Debug, Serialize)]
pub struct Hold {
    pub id: String,
    pub phase: String,
    pub attention: String,
    pub payer: String,
    pub payee: String,
    pub amount: Option<Amount>,
    pub on_maturity: String,
    pub due_at: Option<String>,
    pub cause: String,
    pub reason: String,
    created_at: Option<String>,
    held_at: Option<String>,
    decided_at: Option<String>,
    settled_at: Option<String>,
    labels: BTreeMap<String, String>,
    etag: String,
}

impl Hold {
    /// The hold that an answer must have.
    pub fn of_answer(hold: Option<v1::Hold>) -> Result<Self, Box<Failure>> {
        hold.map(Self::from).ok_or_else(|| Failure::incomplete("hold"))
    }

    fn is_final(&self) -> bool {
        [Phase::Confirmed, Phase::Cancelled].iter().any(|&phase| self.phase == phase_name(phase.into()))
    }

    /// When it entered its phase.
    fn since(&self) -> Option<&str> {
        let since = match self.phase.as_str() {
            "TRYING" => &self.created_at,
            "HELD" => &self.held_at,
            "CONFIRMING" | "CANCELLING" => &self.decided_at,
            "CONFIRMED" | "CANCELLED" => &self.settled_at,
            _ => &None,
        };
        since.as_deref()
    }
}

fn phase_name(phase: i32) -> String {
    name(phase, "PHASE_", Phase::as_str_name)
}

impl From<v1::Hold> for Hold {
    fn from(hold: v1::Hold) -> Self {
        Self {
            id: hold.id,
            phase: phase_name(hold.phase),
            attention: name(hold.attention, "ATTENTION_", Attention::as_str_name),
            payer: hold.payer,
            payee: hold.payee,
            amount: hold.amount.map(Amount::from),
            on_maturity: name(hold.on_maturity, "ON_MATURITY_", OnMaturity::as_str_name),
            due_at: hold.due_at.as_ref().map(time),
            cause: name(hold.cause, "CAUSE_", Cause::as_str_name),
            reason: hold.reason,
            created_at: hold.created_at.as_ref().map(time),
            held_at: hold.held_at.as_ref().map(time),
            decided_at: hold.decided_at.as_ref().map(time),
            settled_at: hold.settled_at.as_ref().map(time),
            labels: hold.labels.into_iter().collect(),
            etag: hold.etag,
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.write_str(&fields([
            ("id", self.id.clone()),
            ("phase", self.phase.clone()),
            ("attention", or_dash(Some(&self.attention))),
            ("payer", self.payer.clone()),
            ("payee", self.payee.clone()),
            ("amount", or_dash(self.amount.as_ref().map(Amount::to_string).as_deref())),
            ("on_maturity", or_dash(Some(&self.on_maturity))),
            ("due_at", or_dash(self.due_at.as_deref())),
            ("cause", or_dash(Some(&self.cause))),
            ("reason", or_dash(Some(&self.reason))),
            ("created_at", or_dash(self.created_at.as_deref())),
            ("held_at", or_dash(self.held_at.as_deref())),
            ("decided_at", or_dash(self.decided_at.as_deref())),
            ("settled_at", or_dash(self.settled_at.as_deref())),
            ("labels", or_dash(Some(&labels.join(" ")))),
        ]))
    }
}

#[derive(Debug, Serialize)]
struct List {
    holds: Vec<Hold>,
    /// There may be more.
    more: bool,
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.holds.iter().map(|hold| {
            [
                hold.id.clone(),
                hold.phase.clone(),
                or_dash(hold.amount.as_ref().map(Amount::to_string).as_deref()),
                hold.payer.clone(),
                hold.payee.clone(),
                or_dash(hold.due_at.as_deref()),
            ]
        });
        f.write_str(&rows(["HOLD", "PHASE", ">AMOUNT", "PAYER", "PAYEE", "DUE_AT"], lines))
    }
}

/// One line of a watch: since when, which phase, and why.
#[derive(Serialize)]
#[serde(transparent)]
struct Step<'a>(&'a Hold);

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(hold) = self;
        write!(f, "{}  {}", or_dash(hold.since()), hold.phase)?;
        for why in [&hold.cause, &hold.reason] {
            if or_dash(Some(why)) != "-" {
                write!(f, "  {why}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;

    fn refused() -> Hold {
        let at = |seconds: i64| Some(Timestamp { seconds: 1_790_000_000 + seconds, nanos: 0 });
        Hold::from(v1::Hold {
            id: "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".into(),
            phase: Phase::Cancelled.into(),
            attention: Attention::None.into(),
            payer: "alice".into(),
            payee: "bob".into(),
            amount: Some(v1::Amount { value: 500, currency: "GOLD".into() }),
            on_maturity: OnMaturity::Confirm.into(),
            due_at: at(3_600),
            cause: Cause::Refused.into(),
            reason: "INSUFFICIENT_FUNDS".into(),
            created_at: at(0),
            held_at: None,
            decided_at: at(1),
            settled_at: at(2),
            labels: [("order".to_owned(), "4711".to_owned())].into(),
            etag: "12".into(),
        })
    }

    #[test]
    fn a_hold_shows_everything_and_a_dash_for_what_did_not_happen() {
        let expected = "\
id           019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d
phase        CANCELLED
attention    NONE
payer        alice
payee        bob
amount       500 GOLD
on_maturity  CONFIRM
due_at       2026-09-21T15:13:20.000000Z
cause        REFUSED
reason       INSUFFICIENT_FUNDS
created_at   2026-09-21T14:13:20.000000Z
held_at      -
decided_at   2026-09-21T14:13:21.000000Z
settled_at   2026-09-21T14:13:22.000000Z
labels       order=4711";

        assert_eq!(refused().to_string(), expected);
    }

    #[test]
    fn a_hold_for_scripts_has_the_protos_names() {
        let expected = concat!(
            r#"{"id":"019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d","phase":"CANCELLED","attention":"NONE","#,
            r#""payer":"alice","payee":"bob","amount":{"value":"500","currency":"GOLD"},"on_maturity":"CONFIRM","#,
            r#""due_at":"2026-09-21T15:13:20.000000Z","cause":"REFUSED","reason":"INSUFFICIENT_FUNDS","#,
            r#""created_at":"2026-09-21T14:13:20.000000Z","held_at":null,"#,
            r#""decided_at":"2026-09-21T14:13:21.000000Z","settled_at":"2026-09-21T14:13:22.000000Z","#,
            r#""labels":{"order":"4711"},"etag":"12"}"#
        );

        assert_eq!(serde_json::to_string(&refused()).unwrap(), expected);
        assert_eq!(serde_json::to_string(&Step(&refused())).unwrap(), expected);
    }

    #[test]
    fn a_step_of_a_watch_says_since_when_and_why() {
        let held =
            Hold { phase: "HELD".into(), cause: "UNSPECIFIED".into(), reason: String::new(), ..refused() };

        assert_eq!(
            Step(&refused()).to_string(),
            "2026-09-21T14:13:22.000000Z  CANCELLED  REFUSED  INSUFFICIENT_FUNDS"
        );
        assert_eq!(Step(&held).to_string(), "-  HELD");
    }

    #[test]
    fn a_list_has_a_line_for_each_hold() {
        let text = List { holds: vec![refused(), refused()], more: false }.to_string();

        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines[1],
            "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d  CANCELLED  500 GOLD  alice  bob    2026-09-21T15:13:20.000000Z"
        );
    }

    #[test]
    fn only_confirmed_and_cancelled_are_final() {
        for phase in 0..=6 {
            let hold = Hold { phase: phase_name(phase), ..refused() };

            assert_eq!(hold.is_final(), phase == 4 || phase == 6, "{}", hold.phase);
        }
    }
}
