//! The warehouse of `stock.rs` for thousands of reservations a second: many steps in one local transaction.
//!
//! The rows that a batch touches are locked in one order, so that two batches cannot wait for each other; it is decided in
//! memory; and everything is written at once, each item once, however many steps are about it.

use std::collections::BTreeMap;
use tcc_participant::{BatchResource, Effect, Operation, Refusal, Retry, ServeError, Server, Step, Tx};

const SOLD_OUT: Refusal = Refusal::own("SOLD_OUT");

/// The warehouse.
pub struct StockInBatches;

impl BatchResource for StockInBatches {
    async fn run(&self, tx: &Tx<'_>, steps: &[&Step]) -> Result<Vec<Effect>, Retry> {
        let items: Vec<String> = steps.iter().map(|step| step.branch.text()).collect();
        let lock = "SELECT item, free, reserved FROM stock WHERE item = ANY ($1) ORDER BY item FOR UPDATE";
        let rows = tx.query(lock, &[&items]).await?;
        let mut stock: BTreeMap<String, (i32, i32)> =
            rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();

        let effects =
            steps.iter().zip(&items).map(|(step, item)| match (step.operation, stock.get_mut(item)) {
                (Operation::Try, None | Some((0, _))) => Ok(Effect::Refused(SOLD_OUT)),
                (Operation::Try, Some((free, reserved))) => {
                    (*free, *reserved) = (*free - 1, *reserved + 1);
                    Ok(Effect::Done)
                }
                (Operation::Confirm, Some((_, reserved))) => {
                    *reserved -= 1;
                    Ok(Effect::Done)
                }
                (Operation::Cancel, Some((free, reserved))) => {
                    (*free, *reserved) = (*free + 1, *reserved - 1);
                    Ok(Effect::Done)
                }
                // It was reserved, so it was there: whoever deleted it has to put it back.
                (Operation::Confirm | Operation::Cancel, None) => {
                    Err(Retry::because("a reserved item is gone"))
                }
            });
        let effects = effects.collect::<Result<_, _>>()?;

        let items: Vec<&str> = stock.keys().map(String::as_str).collect();
        let (free, reserved): (Vec<i32>, Vec<i32>) = stock.values().copied().unzip();
        let write = "UPDATE stock s SET free = i.free, reserved = i.reserved
                     FROM unnest($1::text[], $2::int[], $3::int[]) AS i (item, free, reserved)
                     WHERE s.item = i.item";
        tx.execute(write, &[&items, &free, &reserved]).await?;
        Ok(effects)
    }
}

#[tokio::main]
async fn main() -> Result<(), ServeError> {
    Server::from_env()?.serve_batches(StockInBatches).await
}
