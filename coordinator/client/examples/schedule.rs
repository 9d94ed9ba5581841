//! Schedules a payment, changes its mind about another one, and pays a third at once.

use std::time::Duration;
use tcc_client::{AccountId, Client, Currency, Money, Phase, Reason, Timestamp, new_id};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("TCC_URL").unwrap_or("http://localhost:7070".into());
    let mut connect = Client::at(&url);
    // In production https, and an API key or a token that shows who asks; `tccd dev` believes everybody.
    if let Ok(key) = std::env::var("TCC_TOKEN") {
        connect = connect.api_key(&key);
    }
    conversation(&connect.connect().await?).await
}

/// Anything that fails on the way is an error, and nothing else is.
pub async fn conversation(client: &Client) -> anyhow::Result<()> {
    let (alice, bob) = two_accounts(client).await?;

    // Paid in two seconds. The id is made before it is sent: whoever writes it down can ask again after a crash.
    let id = new_id();
    let soon = Timestamp::now() + Duration::from_secs(2);
    let order =
        client.hold(&alice, &bob, Money::new(30, "GOLD")?).pay_out_at(soon).id(id).label("order", "4711");
    let created = order.send().await?;
    println!("{} until {soon}", created.hold.phase);
    assert!(order.send().await?.replayed);

    // Cancelled: the answer means that it will never be paid.
    let later = Timestamp::now() + Duration::from_secs(3600);
    let rent = client.hold(&alice, &bob, Money::new(50, "GOLD")?).pay_out_at(later).send().await?;
    println!("{}", client.cancel(rent.hold.id).await?.phase);

    // A reservation is released if nobody confirms it.
    let deposit = client.hold(&alice, &bob, Money::new(40, "GOLD")?).release_at(later).send().await?;
    println!("{}", client.confirm(deposit.hold.id).await?.phase);

    // Many with one request, and an outcome for each: a no to one is nothing to the others.
    let wages = [Money::new(20, "GOLD")?, Money::new(1_000, "GOLD")?];
    let wages = wages.map(|money| client.hold(&alice, &bob, money).pay_out_at(later));
    for outcome in client.send_all(&wages).await {
        match outcome {
            Ok(created) => println!("{}", client.cancel(created.hold.id).await?.phase),
            Err(error) if error.reason() == Some(Reason::InsufficientFunds) => println!("{error}"),
            Err(error) => return Err(error.into()),
        }
    }

    // No is an answer, too, and final.
    match client.transfer(&alice, &bob, Money::new(1_000, "GOLD")?).send().await {
        Err(error) if error.reason() == Some(Reason::InsufficientFunds) => println!("{error}"),
        other => anyhow::bail!("answered {other:?}"),
    }

    let paid = client.watch(id).until_final().await?;
    anyhow::ensure!(paid.phase == Phase::Confirmed, "it is {}", paid.phase);
    println!("{} at {:?}", paid.phase, paid.settled_at);
    Ok(())
}

/// An account with 100 units, and one without.
async fn two_accounts(client: &Client) -> anyhow::Result<(AccountId, AccountId)> {
    let (alice, bob) = (AccountId::parse("alice")?, AccountId::parse("bob")?);
    for account in [&alice, &bob] {
        client.open(account, &Currency::parse("GOLD")?).await?;
    }
    client.issue(new_id(), &alice, Money::new(100, "GOLD")?).await?;
    Ok((alice, bob))
}
