//! A participant in thirty lines: a warehouse. A branch's payload is the name of an item, of which it reserves one.
//!
//! Its table: `CREATE TABLE stock (item text PRIMARY KEY, free int NOT NULL, reserved int NOT NULL)`.
//! Run it: `TCC_PARTICIPANT=stock TCC_DATABASE_URL=postgresql:///stock cargo run --example stock`.

use tcc_participant::{Branch, Refusal, Reservation, Resource, Retry, ServeError, Server, Tx};

const SOLD_OUT: Refusal = Refusal::own("SOLD_OUT");

/// The warehouse.
pub struct Stock;

impl Resource for Stock {
    async fn reserve(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Reservation, Retry> {
        let sql = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = $1 AND free > 0";
        match tx.execute(sql, &[&branch.text()]).await? {
            0 => Ok(Reservation::Refused(SOLD_OUT)),
            _ => Ok(Reservation::Made),
        }
    }

    async fn confirm(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        tx.execute("UPDATE stock SET reserved = reserved - 1 WHERE item = $1", &[&branch.text()]).await?;
        Ok(())
    }

    async fn cancel(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        let sql = "UPDATE stock SET free = free + 1, reserved = reserved - 1 WHERE item = $1";
        tx.execute(sql, &[&branch.text()]).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), ServeError> {
    Server::from_env()?.serve(Stock).await
}
