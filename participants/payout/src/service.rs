//! What operators ask: the line, the payouts, and to write down what a person has found out.

use crate::{
    book::{Ending, Kept, Waiting},
    provider::{Order, PayoutId, Provider},
    worker::{Settled, Worker},
};
use deadpool_postgres::Pool;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use std::sync::Arc;
use tcc_core::{Refusal, Timestamp, TransactionId};
use tcc_proto::v1::{self, payout_service_server::PayoutService, settle_payout_request::Found};
use tokio_postgres::{Row, types::ToSql};
use tonic::{Request, Response, Status};
use uuid::Uuid;

const LIST: &str = "-- list_payouts
SELECT transaction_id, branch, recipient, amount, currency, state, reference, remark, settled_by,
    due_at, asked_at, ended_at
FROM payout
WHERE ($1::timestamptz IS NULL OR reserved_at >= $1) AND ($2::timestamptz IS NULL OR reserved_at < $2)
    AND ($3::uuid IS NULL OR transaction_id = $3)
ORDER BY transaction_id, branch";

/// Serves operators.
pub(crate) struct Desk<P> {
    pool: Pool,
    worker: Arc<Worker<Kept, P>>,
}

impl<P: Provider> Desk<P> {
    pub(crate) fn new(pool: Pool, worker: Arc<Worker<Kept, P>>) -> Self {
        Self { pool, worker }
    }

    async fn client(&self) -> Result<deadpool_postgres::Client, Status> {
        self.pool.get().await.map_err(|error| Status::unavailable(format!("the database: {error}")))
    }

    async fn one(&self, id: PayoutId) -> Result<v1::Payout, Status> {
        let client = self.client().await?;
        let (from, until, transaction) = (None::<Timestamp>, None::<Timestamp>, id.transaction.uuid());
        let rows = client.query(LIST, &[&from, &until, &transaction]).await.map_err(|e| unavailable(&e))?;
        let found = rows.iter().map(read).find(|payout| payout.branch == u32::from(id.branch));
        found.ok_or_else(|| Status::not_found(format!("there is no payout {}", id.key())))
    }

    async fn waiting(&self, id: PayoutId) -> Result<Option<Waiting>, Status> {
        let sql = "-- read_asked
            SELECT p.recipient, p.destination, p.amount, p.currency, f.descriptor
            FROM payout p JOIN tcc_fence f USING (transaction_id, branch)
            WHERE p.transaction_id = $1 AND p.branch = $2 AND p.state = 3";
        let keys: [&(dyn ToSql + Sync); 2] = [&id.transaction.uuid(), &(id.branch as i16)];
        let row = self.client().await?.query_opt(sql, &keys).await.map_err(|e| unavailable(&e))?;
        Ok(row.map(|row| Waiting {
            order: Order {
                id,
                recipient: row.get(0),
                destination: row.get(1),
                amount: row.get(2),
                currency: row.get(3),
            },
            asked_for: None,
            descriptor: row.get(4),
        }))
    }
}

#[tonic::async_trait]
impl<P: Provider> PayoutService for Desk<P> {
    async fn get_payout_status(
        &self,
        _: Request<v1::GetPayoutStatusRequest>,
    ) -> Result<Response<v1::GetPayoutStatusResponse>, Status> {
        let sql = "-- read_payout_status
            SELECT count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 3), min(due_at)
            FROM payout WHERE state IN (2, 3)";
        let row = self.client().await?.query_one(sql, &[]).await.map_err(|e| unavailable(&e))?;
        Ok(Response::new(v1::GetPayoutStatusResponse {
            in_line: row.get(0),
            asked: row.get(1),
            oldest_due_at: row.get::<_, Option<Timestamp>>(2).map(time),
            held_up: self.worker.held_up().unwrap_or_default().to_owned(),
        }))
    }

    type ListPayoutsStream = BoxStream<'static, Result<v1::ListPayoutsResponse, Status>>;

    async fn list_payouts(
        &self,
        request: Request<v1::ListPayoutsRequest>,
    ) -> Result<Response<Self::ListPayoutsStream>, Status> {
        let v1::ListPayoutsRequest { from, until, transaction_id } = request.into_inner();
        let id = match transaction_id.as_str() {
            "" => None,
            text => Some(parse(text)?.uuid()),
        };
        let (from, until) = (moment(from)?, moment(until)?);
        let client = self.client().await?;
        let parameters: [&(dyn ToSql + Sync); 3] = [&from, &until, &id];
        let rows = client.query_raw(LIST, parameters).await.map_err(|e| unavailable(&e))?;
        let payouts = rows
            .map_ok(|row| v1::ListPayoutsResponse { payout: Some(read(&row)) })
            .map_err(|error| unavailable(&error))
            // The connection is somebody else's when the last row is read.
            .chain(futures::stream::once(async move { drop(client) }).filter_map(|()| async { None }));
        Ok(Response::new(payouts.boxed()))
    }

    async fn settle_payout(
        &self,
        request: Request<v1::SettlePayoutRequest>,
    ) -> Result<Response<v1::SettlePayoutResponse>, Status> {
        let caller = request.metadata().get("tcc-caller").and_then(|caller| caller.to_str().ok());
        let caller = caller.unwrap_or("somebody").to_owned();
        let v1::SettlePayoutRequest { transaction_id, branch, found, reason } = request.into_inner();
        if reason.trim().is_empty() {
            return Err(Status::invalid_argument("reason: say how it was found out; it is recorded"));
        }
        let branch = u16::try_from(branch).map_err(|_| Status::invalid_argument("branch: out of range"))?;
        let id = PayoutId { transaction: parse(&transaction_id)?, branch };
        let ending = match found {
            Some(Found::Paid(reference)) => Ending::Paid { reference },
            Some(Found::Never(reason)) => Ending::Never(Refusal::from_code(&reason).map_err(|_| {
                Status::invalid_argument("never: a reason is 1 to 47 of A-Z, 0-9 and _, a letter first")
            })?),
            None => return Err(Status::invalid_argument("found: paid or never")),
        };
        let state = match ending {
            Ending::Paid { .. } => v1::PayoutState::Paid,
            Ending::Never(_) => v1::PayoutState::Vetoed,
        };
        if let Some(waiting) = self.waiting(id).await? {
            tracing::warn!(id = %id.transaction, ?ending, caller, reason, "settled by hand");
            let why = match self.worker.settle(&waiting, ending, &format!("{caller}: {reason}")).await {
                Settled::Certainly => None,
                Settled::Perhaps => Some("it is not certain that it is written; repeat it"),
                Settled::Busy => Some("the provider is being asked for it just now; repeat it"),
                Settled::Elsewhere => {
                    Some("another tcc-payout on this database asks the provider; ask that one")
                }
            };
            if let Some(why) = why {
                return Err(Status::unavailable(why));
            }
        }
        let payout = self.one(id).await?;
        if payout.state() != state {
            let what =
                format!("it is {}, which is final, or was not asked for yet", payout.state().as_str_name());
            return Err(Status::failed_precondition(what));
        }
        Ok(Response::new(v1::SettlePayoutResponse { payout: Some(payout) }))
    }
}

fn read(row: &Row) -> v1::Payout {
    let (id, branch): (Uuid, i16) = (row.get("transaction_id"), row.get("branch"));
    let text = |column: &str| row.get::<_, Option<String>>(column).unwrap_or_default();
    let at = |column: &str| row.get::<_, Option<Timestamp>>(column).map(time);
    v1::Payout {
        transaction_id: id.to_string(),
        branch: u32::from(branch as u16),
        key: TransactionId::from_uuid(id)
            .map(|transaction| PayoutId { transaction, branch: branch as u16 }.key())
            .unwrap_or_default(),
        recipient: row.get("recipient"),
        amount: row.get("amount"),
        currency: row.get("currency"),
        // Stored numbers are the wire's.
        state: row.get::<_, i16>("state").into(),
        reference: text("reference"),
        remark: text("remark"),
        settled_by: text("settled_by"),
        due_at: at("due_at"),
        asked_at: at("asked_at"),
        ended_at: at("ended_at"),
    }
}

fn parse(text: &str) -> Result<TransactionId, Status> {
    TransactionId::parse(text).map_err(|error| Status::invalid_argument(format!("transaction_id: {error}")))
}

fn time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

fn moment(time: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Status> {
    let read = |time: prost_types::Timestamp| Timestamp::new(time.seconds, time.nanos);
    time.map(read).transpose().map_err(|_| Status::invalid_argument("from and until: out of range"))
}

fn unavailable(error: &tokio_postgres::Error) -> Status {
    Status::unavailable(format!("the payouts' database: {error}"))
}
