//! PostgreSQL's roles, where an installation has made them.
//!
//! The migrator owns the tables, the maintainer those with partitions, the engine may do what the protocol does and nothing
//! else. Logins are members of one of them. Where there are no such roles, one login does everything, and nothing here has
//! an effect. Connections of the migrator and the maintainer act as the role itself, so that what one login makes another
//! may change.

use tokio_postgres::{Client, Error};

/// Who creates and changes tables.
pub const MIGRATOR: &str = "tcc_migrator";
/// Who makes and drops partitions.
pub const MAINTAINER: &str = "tcc_maintainer";
/// Who does what the protocol does.
const ENGINE: &str = "tcc_engine";

/// Acts as a role from now on, if there is one and this login is a member of it. A superuser stays what it is: it is no member,
/// and needs no role.
///
/// # Errors
///
/// PostgreSQL's.
pub async fn act_as(client: &Client, role: &'static str) -> Result<(), Error> {
    let sql = "-- is_member
        SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1 AND pg_has_role(oid, 'MEMBER'))
            AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)";
    if client.query_one(sql, &[&role]).await?.get(0) {
        client.batch_execute(&format!("SET ROLE {role}")).await?;
    }
    Ok(())
}

/// SQL that lets the engine read a partition by its name: a right to read the whole table does not reach that far.
#[must_use]
pub fn readable(partition: &str) -> String {
    format!(
        "DO $$ BEGIN
             IF to_regrole('{ENGINE}') IS NOT NULL THEN GRANT SELECT ON {partition} TO {ENGINE}; END IF;
         END $$;"
    )
}

/// Runs a script that grants the roles their rights: after a migration, or if the engine cannot read `table` yet. Only its
/// owner can.
///
/// # Errors
///
/// PostgreSQL's. Then nothing is granted.
pub async fn grant(client: &Client, table: &str, has_changed: bool, script: &str) -> Result<(), Error> {
    let sql = "-- is_granted
        SELECT to_regrole('tcc_engine') IS NOT NULL AND pg_has_role(c.relowner, 'USAGE') AS can_grant,
            CASE WHEN to_regrole('tcc_engine') IS NULL THEN false
                 ELSE has_table_privilege(to_regrole('tcc_engine'), c.oid, 'SELECT') END AS is_granted
        FROM pg_class c WHERE c.oid = $1::text::regclass";
    let row = client.query_one(sql, &[&table]).await?;
    let (can_grant, is_granted): (bool, bool) = (row.get(0), row.get(1));
    if can_grant && (has_changed || !is_granted) {
        client.batch_execute("BEGIN").await?;
        let granted = client.batch_execute(script).await;
        client.batch_execute(if granted.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        return granted;
    }
    Ok(())
}
