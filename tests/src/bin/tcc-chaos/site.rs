//! A PostgreSQL server and its standby, at one address whichever of them serves.
//!
//! The address is a link to the folder with the socket of the one that does. A shard's standby is a synchronous one from the first
//! moment: what was acknowledged is there, and while there is none nothing is acknowledged. The coordinator's is asynchronous, and is
//! held back before it takes over, so that commits are lost. A server that failed over is given up for good, and the next standby is a
//! copy of the one that took over.

use crate::{
    clock::Clock,
    disk::{self, Disk},
};
use anyhow::{Context as _, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    fs, mem,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tcc_coordinator::dev::{Cluster, Options};
use tcc_tests::try_connect;
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, MutexGuard},
    task::block_in_place,
    time::{sleep, timeout},
};
use uuid::Uuid;

/// What a standby calls itself.
const STANDBY: &str = "standby";
/// How long a fault waits for another one that is at the same server.
const TURN: Duration = Duration::from_secs(5);
/// How long a standby may take until it receives.
const RECEIVE: Duration = Duration::from_secs(20);
/// How long it may take to take over.
const PROMOTE: Duration = Duration::from_secs(30);
/// How long it is tried to make a standby: other faults meet that, too.
const ATTACH: Duration = Duration::from_secs(90);
/// Rows of transactions that are older than this are not looked at after a loss.
const RECENT: SignedDuration = SignedDuration::from_mins(5);

/// What a site is to be.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Whether a commit waits for the standby.
    pub is_synchronous: bool,
    /// Whether its servers' logs are on small disks.
    pub has_small_disk: bool,
}

/// A server that serves, and one that takes over.
pub struct Site {
    /// The one that takes over. `None`: it is being made.
    pub standby: Mutex<Option<Server>>,
    /// The one that serves.
    pub server: Mutex<Server>,
    /// Of both, if it can be set.
    pub clock: Option<Arc<Clock>>,
    plan: Plan,
    address: PathBuf,
    /// Everything of every site stands in it.
    root: Arc<TempDir>,
}

/// A server, and what goes with it: it is stopped, its disk unmounted, its folder removed.
pub struct Server {
    /// PostgreSQL.
    pub cluster: Cluster,
    /// What its log is on, if that is apart.
    pub disk: Option<Disk>,
    _home: TempDir,
}

/// What a fail-over did.
pub struct FailOver {
    /// From when on the other server served.
    pub served_at: Instant,
    /// The transactions whose rows were lost.
    pub lost: Vec<Uuid>,
    /// How many rows went back to an earlier phase.
    pub went_back: usize,
}

impl Site {
    /// Starts both servers.
    pub async fn start(plan: Plan, root: Arc<TempDir>, clock: Option<Arc<Clock>>) -> anyhow::Result<Self> {
        let (home, disk) = folder(&root, plan)?;
        let options = options(plan, clock.as_deref(), &home, disk.as_ref(), None);
        let cluster = block_in_place(|| Cluster::start(&options))?;
        let server = Server { cluster, disk, _home: home };
        let address = root.path().join(plan.name);
        let site = Self { standby: Mutex::default(), server: Mutex::new(server), clock, plan, address, root };
        let (server, mut standby) = (site.server.lock().await, site.standby.lock().await);
        site.point_at(&server)?;
        drop(server);
        site.attach(&mut standby).await?;
        drop(standby);
        Ok(site)
    }

    /// How to reach the one that serves.
    pub fn url(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.address.display())
    }

    /// The socket of the one that serves.
    pub fn socket(&self) -> PathBuf {
        self.address.join(".s.PGSQL.5432")
    }

    /// The server is killed and given up, its standby takes over, and gets a standby of its own. An asynchronous one has received
    /// nothing for a while before.
    pub async fn fail_over(&self, held_back: Duration) -> anyhow::Result<FailOver> {
        let mut server = taken(&self.server).await?;
        let mut place = taken(&self.standby).await?;
        self.receives(TURN).await?;
        let heir = place.take().context("there is no standby")?;
        if !self.plan.is_synchronous {
            heir.signal("STOP");
            sleep(held_back).await;
        }
        block_in_place(|| server.cluster.crash())?;
        heir.signal("CONT");
        if let Err(error) = promote(&heir).await {
            drop(heir);
            block_in_place(|| server.cluster.launch())?;
            drop(server);
            self.attach(&mut place).await?;
            return Err(error.context("the standby did not take over, and was replaced"));
        }
        let after = if self.plan.is_synchronous { Ok(HashMap::new()) } else { phases(&heir).await };
        self.point_at(&heir)?;
        let served_at = Instant::now();
        let given_up = mem::replace(&mut *server, heir);
        drop(server);

        self.attach(&mut place).await?;
        let before = if self.plan.is_synchronous { HashMap::new() } else { left_on(given_up).await? };
        let after = after?;
        let lost = before.keys().filter(|id| !after.contains_key(*id)).copied().collect();
        let is_earlier = |(id, phase): &(&Uuid, &i16)| after.get(*id).is_some_and(|after| after != *phase);
        Ok(FailOver { served_at, lost, went_back: before.iter().filter(is_earlier).count() })
    }

    /// Both run, the disk has room, and the standby receives.
    pub async fn mend(&self) -> anyhow::Result<()> {
        let mut server = self.server.lock().await;
        server.disk.iter().try_for_each(Disk::free)?;
        if !server.cluster.runs() {
            block_in_place(|| server.cluster.launch())?;
        }
        drop(server);
        let mut place = self.standby.lock().await;
        if let Some(standby) = place.as_mut()
            && !standby.cluster.runs()
        {
            block_in_place(|| standby.cluster.launch())?;
        }
        if place.is_none() || self.receives(RECEIVE).await.is_err() {
            *place = None;
            self.attach(&mut place).await?;
        }
        Ok(())
    }

    /// Makes a standby of the one that serves, however often that takes: what is copied may crash.
    async fn attach(&self, place: &mut Option<Server>) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            match self.standby().await {
                Ok(standby) => {
                    *place = Some(standby);
                    return Ok(());
                }
                Err(error) if began.elapsed() > ATTACH => {
                    return Err(error.context(format!("making a standby of {}", self.plan.name)));
                }
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn standby(&self) -> anyhow::Result<Server> {
        let (home, disk) = folder(&self.root, self.plan)?;
        let data = home.path().join("data");
        let (mut copy, source, owner) = {
            let server = self.server.lock().await;
            let owner =
                fs::metadata(server.cluster.home().join("data")).context("looking at a server's data")?;
            (server.cluster.program("pg_basebackup"), server.cluster.url(), owner)
        };
        copy.args(["--dbname", &source, "--wal-method=stream", "--checkpoint=fast", "--write-recovery-conf"]);
        copy.args(["--no-sync", "--no-manifest", "--pgdata"]).arg(&data);
        if let Some(disk) = &disk {
            copy.arg("--waldir").arg(disk.wal());
        }
        for folder in std::iter::once(data).chain(disk.as_ref().map(Disk::wal)) {
            fs::create_dir_all(&folder).context("making a folder for a standby")?;
            chown(&folder, Some(owner.uid()), Some(owner.gid())).context("making a folder for a standby")?;
            // PostgreSQL wants nobody else to look into it.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
                .context("closing a standby's folder")?;
        }
        let copied = block_in_place(|| copy.output()).context("running pg_basebackup")?;
        ensure!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr).trim());

        let options = options(self.plan, self.clock.as_deref(), &home, disk.as_ref(), Some(&source));
        let cluster = block_in_place(|| Cluster::start(&options))?;
        let standby = Server { cluster, disk, _home: home };
        self.receives(RECEIVE).await?;
        Ok(standby)
    }

    /// Waits until the standby receives what is committed.
    async fn receives(&self, patience: Duration) -> anyhow::Result<()> {
        let receiving = "SELECT count(*) FROM pg_stat_replication
                         WHERE application_name = $1 AND state = 'streaming' AND (sync_state = 'sync' OR NOT $2)";
        let began = Instant::now();
        while began.elapsed() < patience {
            if let Ok(sql) = try_connect(&self.url()).await
                && let Ok(row) = sql.query_one(receiving, &[&STANDBY, &self.plan.is_synchronous]).await
                && row.get::<_, i64>(0) == 1
            {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("the standby of {} does not receive anything", self.plan.name)
    }

    fn point_at(&self, server: &Server) -> anyhow::Result<()> {
        let next = self.address.with_extension("next");
        symlink(server.cluster.home().join("s"), &next).context("making the link to a server")?;
        fs::rename(&next, &self.address).context("making the link to a server")
    }
}

impl Server {
    /// Sends a signal to all of its processes.
    pub fn signal(&self, name: &str) {
        let _ = Command::new("kill").arg(format!("-{name}")).args(self.cluster.processes()).status();
    }
}

/// Waits for something that another fault is at, but not for long.
pub async fn taken<T>(place: &Mutex<T>) -> anyhow::Result<MutexGuard<'_, T>> {
    timeout(TURN, place.lock()).await.context("another fault is at it")
}

/// A folder for a server, which whoever the server runs as may pass through, and its disk.
fn folder(root: &TempDir, plan: Plan) -> anyhow::Result<(TempDir, Option<Disk>)> {
    let home = tempfile::Builder::new().prefix(&format!("{}-", plan.name)).tempdir_in(root.path());
    let home = home.context("making a folder for a server")?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711))
        .context("opening a server's folder")?;
    let disk = if plan.has_small_disk { Some(Disk::mount(&home.path().join("disk"))?) } else { None };
    Ok((home, disk))
}

fn options(
    plan: Plan,
    clock: Option<&Clock>,
    home: &TempDir,
    disk: Option<&Disk>,
    source: Option<&str>,
) -> Options {
    let mut settings = vec!["wal_retrieve_retry_interval=100ms".to_owned()];
    if plan.is_synchronous {
        settings.push(format!("synchronous_standby_names={STANDBY}"));
    }
    if let Some(source) = source {
        settings.push(format!("primary_conninfo={source} application_name={STANDBY}"));
    }
    match disk {
        Some(_) => settings.extend(disk::SETTINGS.map(str::to_owned)),
        None => settings.push("wal_keep_size=256MB".to_owned()),
    }
    Options {
        data: Some(home.path().to_owned()),
        settings,
        wal: disk.map(Disk::wal),
        environment: clock.map(Clock::environment).unwrap_or_default(),
        ..Options::default()
    }
}

/// Returns once it takes writes.
async fn promote(heir: &Server) -> anyhow::Result<()> {
    let sql = try_connect(&heir.cluster.url()).await.context("reaching the standby")?;
    // A query that waited for the promotion would have a snapshot, for which what is left to be replayed might have to wait.
    sql.query("SELECT pg_promote(false)", &[]).await.context("promoting the standby")?;
    let began = Instant::now();
    while began.elapsed() < PROMOTE {
        let is_standby =
            sql.query_one("SELECT pg_is_in_recovery()", &[]).await.context("promoting the standby")?;
        if !is_standby.get::<_, bool>(0) {
            return Ok(());
        }
        sleep(Duration::from_millis(10)).await;
    }
    bail!("the standby was not promoted within {PROMOTE:?}")
}

/// The phases of the recent transactions of a coordinator's server.
async fn phases(server: &Server) -> anyhow::Result<HashMap<Uuid, i16>> {
    let sql = try_connect(&server.cluster.url()).await.context("reaching a server after a fail-over")?;
    let since = (Timestamp::now() - RECENT).as_millisecond().unsigned_abs();
    let since = uuid::Builder::from_unix_timestamp_millis(since, &[0; 10]).into_uuid();
    let rows = sql.query("SELECT id, phase FROM transaction WHERE id >= $1", &[&since]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What is on the disk of a server that was given up. It is started once more for that, where nobody reaches it.
async fn left_on(mut server: Server) -> anyhow::Result<HashMap<Uuid, i16>> {
    block_in_place(|| server.cluster.launch()).context("starting a server that was given up")?;
    let phases = phases(&server).await;
    block_in_place(|| server.cluster.crash())?;
    phases
}
