//! Many holds with one request, and an outcome for each.
//!
//! Each is what it would be if it were sent alone: what has no answer yet is asked for again, with the same id or key, and
//! with it only what has none either. So a batch that broke off is not made twice, and one item's no is its own.

use crate::{
    Client, Created, Error, NewHold,
    ask::{Answer, Asking, Said, said, said_of_item, told_of},
    holds::created,
};
use std::time::Duration;
use tcc_proto::v1::{self, batch_create_holds_outcome::Outcome};
use tokio::time::Instant;
use tonic::Status;

/// How many the server takes with one request.
const BATCH: usize = 1_000;
/// What is asked, for people.
const WHAT: &str = "creating a hold";

/// What one attempt has said about a hold: how it ended, or that it is to be asked for again.
type Heard = Result<Result<Created, Error>, Again>;

/// It has no answer yet.
#[derive(Clone)]
struct Again {
    /// What was said last, for people.
    last: String,
    /// How long to wait at least.
    after: Duration,
}

impl Client {
    /// Sends many holds, as [`NewHold::send`] does one: freezes their payers' funds, and answers how each has ended, in the order in
    /// which they are given. They share requests of up to 1,000, and one patience. Some may be held and others not; nothing is
    /// taken back.
    pub async fn send_all(&self, holds: &[NewHold]) -> Vec<Result<Created, Error>> {
        let mut asking = Asking::begin(self.patience);
        let mut ends: Vec<Option<Result<Created, Error>>> = holds.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..holds.len()).collect();
        let mut has_expired = false;
        while !open.is_empty() {
            let (mut again, mut at_least) = (Vec::new(), Duration::ZERO);
            for some in open.chunks(BATCH) {
                let messages = some.iter().map(|n| holds[*n].message()).collect();
                let heard = self.attempt(&asking, messages, &mut has_expired).await;
                for (n, heard) in some.iter().zip(heard) {
                    match heard {
                        Ok(end) => ends[*n] = Some(end),
                        Err(Again { last, after }) => {
                            again.push((*n, last));
                            at_least = at_least.max(after);
                        }
                    }
                }
            }
            open = again.iter().map(|(n, _)| *n).collect();
            if !open.is_empty() && !asking.pause(at_least).await {
                for (n, last) in again {
                    ends[n] = Some(Err(asking.unknown(WHAT, last)));
                }
                break;
            }
        }
        ends.into_iter().flatten().collect()
    }

    /// One request, and what it says about each of its holds.
    async fn attempt(
        &self,
        asking: &Asking,
        holds: Vec<v1::CreateHoldRequest>,
        has_expired: &mut bool,
    ) -> Vec<Heard> {
        let (sent, count) = (Instant::now(), holds.len());
        let request = asking.request(&self.shared, v1::BatchCreateHoldsRequest { holds });
        let all = |heard: &dyn Fn() -> Heard| (0..count).map(|_| heard()).collect();
        match self.shared.holds().batch_create_holds(request).await {
            Ok(response) => {
                let outcomes = response.into_inner().outcomes;
                if outcomes.len() != count {
                    let why = format!("{} outcomes of {count} holds", outcomes.len());
                    return all(&|| Ok(Err(Error::Unreadable { what: WHAT, why: why.clone() })));
                }
                outcomes.into_iter().map(|outcome| of_item(outcome.outcome)).collect()
            }
            Err(status) => {
                let heard = of_status(&status, has_expired);
                if let (Err(_), Some(told)) = (&heard, &self.shared.on_lost) {
                    told(sent.into_std());
                }
                all(&|| heard.clone())
            }
        }
    }
}

/// What one outcome says about its hold.
fn of_item(outcome: Option<Outcome>) -> Heard {
    let unreadable = |why: String| Ok(Err(Error::Unreadable { what: WHAT, why }));
    match outcome {
        None => unreadable("an outcome that is none".into()),
        Some(Outcome::Created(answer)) => match created(answer) {
            Ok(Answer::Is(created)) => Ok(Ok(created)),
            Ok(Answer::NotYet(phase)) => Err(Again { last: phase, after: Duration::ZERO }),
            Err(why) => unreadable(why),
        },
        Some(Outcome::Error(error)) => {
            let last = format!("{}: {}", error.reason, error.message);
            match said_of_item(error) {
                Said::No(no) | Said::Expired(no) => Ok(Err(Error::No { what: WHAT, no })),
                Said::Again { after, .. } => Err(Again { last, after }),
            }
        }
    }
}

/// What the failure of the whole request says about each of its holds.
fn of_status(status: &Status, has_expired: &mut bool) -> Heard {
    match said(status) {
        Said::Expired(no) if !std::mem::replace(has_expired, true) => {
            Err(Again { last: no.to_string(), after: Duration::ZERO })
        }
        Said::No(no) | Said::Expired(no) => Ok(Err(Error::No { what: WHAT, no })),
        Said::Again { after, .. } => Err(Again { last: told_of(status), after }),
    }
}
