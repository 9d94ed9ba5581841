//! Seat reservation, with a veto: a seat can be reserved before its show is approved, and is sold only if it was by then.
//!
//! Its table: `CREATE TABLE seat (seat text PRIMARY KEY, approved bool NOT NULL, taken_by uuid, sold bool NOT NULL)`.
//! A branch's payload is the seat. This participant must have the pivot of its transactions.

use tcc_participant::{Branch, Refusal, Reservation, Resource, Retry, ServeError, Server, Tx};

const SEAT_TAKEN: Refusal = Refusal::own("SEAT_TAKEN");
const NO_SUCH_SEAT: Refusal = Refusal::own("NO_SUCH_SEAT");
const SHOW_NOT_APPROVED: Refusal = Refusal::own("SHOW_NOT_APPROVED");

/// The seats of a house.
pub struct Seats;

impl Resource for Seats {
    const MAY_VETO: bool = true;

    async fn reserve(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Reservation, Retry> {
        let transaction = branch.transaction.uuid();
        // Locked, so that of two transactions that want it at the same time the second one sees what the first one did.
        let sql = "SELECT taken_by IS NULL FROM seat WHERE seat = $1 FOR UPDATE";
        match tx.query_opt(sql, &[&branch.text()]).await? {
            None => return Ok(Reservation::Refused(NO_SUCH_SEAT)),
            Some(row) if !row.get::<_, bool>(0) => return Ok(Reservation::Refused(SEAT_TAKEN)),
            Some(_) => {}
        }
        tx.execute("UPDATE seat SET taken_by = $2 WHERE seat = $1", &[&branch.text(), &transaction]).await?;
        Ok(Reservation::Made)
    }

    async fn veto(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Option<Refusal>, Retry> {
        let row = tx.query_one("SELECT approved FROM seat WHERE seat = $1", &[&branch.text()]).await?;
        Ok(if row.get(0) { None } else { Some(SHOW_NOT_APPROVED) })
    }

    async fn confirm(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        tx.execute("UPDATE seat SET sold = true WHERE seat = $1", &[&branch.text()]).await?;
        Ok(())
    }

    async fn cancel(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        tx.execute("UPDATE seat SET taken_by = NULL WHERE seat = $1", &[&branch.text()]).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), ServeError> {
    Server::from_env()?.serve(Seats).await
}
