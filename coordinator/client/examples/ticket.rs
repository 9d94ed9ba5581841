//! Sells a ticket: the buyer pays, the house and the agency get their shares, all of it or none of it.
//!
//! Here every branch is the ledger's. A seat that must be free is one more branch:
//! `.call(&ParticipantName::parse("seats")?, "reserve", "A1")`.

use std::time::Duration;
use tcc_client::{AccountId, Client, Currency, Money, Phase, Reason, Timestamp, new_id};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("TCC_URL").unwrap_or("http://localhost:7070".into());
    let mut connect = Client::at(&url);
    if let Ok(key) = std::env::var("TCC_TOKEN") {
        connect = connect.api_key(&key);
    }
    conversation(&connect.connect().await?).await
}

/// Anything that fails on the way is an error, and nothing else is.
pub async fn conversation(client: &Client) -> anyhow::Result<()> {
    let gold = |units| Money::new(units, "GOLD");
    let [buyer, house, agency] = accounts(client).await?;
    let ticket = || {
        let money = client.transaction().debit(&buyer, gold(20)?).credit(&agency, gold(2)?);
        // Nothing has left before the pivot has confirmed.
        anyhow::Ok(money.credit(&house, gold(18)?).pivot())
    };

    // Reserved until the buyer confirms, and given back if that does not come within ten minutes. The id is made before it is
    // sent: whoever writes it down can ask again after a crash.
    let (id, deadline) = (new_id(), Timestamp::now() + Duration::from_secs(600));
    let reserved = ticket()?.cancel_at(deadline).id(id).label("show", "4711");
    println!("{} until {deadline}", reserved.send().await?.transaction.phase);
    assert!(reserved.send().await?.replayed);
    println!("{}", client.confirm_transaction(id).await?.phase);

    // Paid at a date, unless it is cancelled before: the answer means that it will never be paid.
    let later = ticket()?.confirm_at(deadline).send().await?.transaction;
    println!("{}", client.cancel_transaction(later.id).await?.phase);

    // At once, and watched to its end: which has come when the answer has.
    let sold = ticket()?.at_once().send().await?.transaction;
    let end = client.watch_transaction(sold.id).until_final().await?;
    anyhow::ensure!(end.phase == Phase::Confirmed, "it is {}", end.phase);

    // No is an answer, too, and final. So is what cannot be: nobody would pay for this one.
    let dear = client.transaction().debit(&buyer, gold(1_000)?).credit(&house, gold(1_000)?).at_once();
    let unpaid = client.transaction().credit(&house, gold(18)?).at_once();
    for (order, reason) in [(dear, Reason::InsufficientFunds), (unpaid, Reason::BranchesUnbalanced)] {
        match order.send().await {
            Err(error) if error.reason() == Some(reason) => println!("{error}"),
            other => anyhow::bail!("answered {other:?}"),
        }
    }

    let mut mine = client.transactions().phase(Phase::Confirmed).label("show", "4711");
    while let Some(page) = mine.next_page().await? {
        page.iter().for_each(|one| println!("{} of {} branches", one.id, one.branches.len()));
    }
    Ok(())
}

/// An account with 100 units, and two without.
async fn accounts(client: &Client) -> anyhow::Result<[AccountId; 3]> {
    let ids = [AccountId::parse("buyer")?, AccountId::parse("house")?, AccountId::parse("agency")?];
    for account in &ids {
        client.open(account, &Currency::parse("GOLD")?).await?;
    }
    client.issue(new_id(), &ids[0], Money::new(100, "GOLD")?).await?;
    Ok(ids)
}
