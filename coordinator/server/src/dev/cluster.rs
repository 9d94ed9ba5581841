//! One throw-away PostgreSQL server, on a Unix socket in a folder of its own: no port, no clash.
//!
//! PostgreSQL refuses to run as root, so root drops to `postgres`, else `nobody`. The server is stopped when its handle is
//! dropped, and, on Linux, is found and stopped by the next start on the same folder if this process was killed.

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No server binaries.
    #[error(
        "PostgreSQL's server programs are not installed. On Debian or Ubuntu: apt-get install postgresql. \
         Elsewhere: install PostgreSQL 15 or newer and set PG_BIN to the folder that holds initdb and postgres"
    )]
    NotInstalled,
    /// Its version is below 15.
    #[error("PostgreSQL {version} in {} is too old: tcc needs version 15 or newer. Set PG_BIN to a newer one", .bin.display())]
    TooOld {
        /// As it says itself.
        version: String,
        /// Where it is.
        bin: PathBuf,
    },
    /// A program did not do its work.
    #[error("{what} failed: {detail}")]
    Failed {
        /// Which.
        what: &'static str,
        /// Its last words.
        detail: String,
    },
    /// A file or process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

/// How a server is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its folder, which is kept and may exist. Without one, a temporary folder.
    pub data: Option<PathBuf>,
    /// Settings such as `fsync=off`, over the defaults.
    pub settings: Vec<String>,
    /// A folder for its log, if that is to stand apart from its data.
    pub wal: Option<PathBuf>,
    /// Environment variables of the server.
    pub environment: Vec<(String, String)>,
    /// The folder of another server, which does not run: what is in its databases a new server begins with.
    pub like: Option<PathBuf>,
}

/// A running server. Stopped when dropped.
pub struct Cluster {
    home: PathBuf,
    bin: PathBuf,
    owner: Option<Owner>,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    server: Option<Child>,
    /// Removed with the handle.
    _temporary: Option<TempDir>,
}

#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// What every server gets. Durable like production; the socket needs no port.
const SETTINGS: [&str; 8] = [
    "listen_addresses=",
    "max_connections=200",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "checkpoint_timeout=15min",
    "wal_compression=lz4",
    "max_prepared_transactions=0",
    "log_min_messages=warning",
];

/// How long a server may take to stop.
const STOP: Duration = Duration::from_secs(30);
/// How long a server may take to start, recovery included.
const START: Duration = Duration::from_secs(60);

impl Cluster {
    /// Makes the folder and its database files where they are missing, and starts the server. Blocks until it answers.
    ///
    /// # Errors
    ///
    /// [`ClusterError`], which says what to do.
    pub fn start(options: &Options) -> Result<Self, ClusterError> {
        let bin = find_binaries()?;
        let owner = unprivileged()?;
        let (home, temporary) = match &options.data {
            Some(folder) => {
                fs::create_dir_all(folder).map_err(|e| at(folder, e))?;
                (folder.canonicalize().map_err(|e| at(folder, e))?, None)
            }
            None => {
                let folder = tempfile::Builder::new()
                    .prefix("tcc-")
                    .tempdir()
                    .map_err(|e| at(Path::new("/tmp"), e))?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        // The unprivileged user must be able to pass through.
        fs::set_permissions(&home, fs::Permissions::from_mode(0o711)).map_err(|e| at(&home, e))?;
        let mut cluster = Self {
            home,
            bin,
            owner,
            settings: options.settings.clone(),
            environment: options.environment.clone(),
            server: None,
            _temporary: temporary,
        };
        for folder in [cluster.data(), cluster.socket()].into_iter().chain(options.wal.clone()) {
            fs::create_dir_all(&folder).map_err(|e| at(&folder, e))?;
            if let Some(Owner { uid, gid }) = owner {
                chown(&folder, Some(uid), Some(gid)).map_err(|e| at(&folder, e))?;
            }
        }
        if !cluster.data().join("PG_VERSION").exists() {
            match &options.like {
                Some(like) => cluster.copy(like)?,
                None => cluster.init(options.wal.as_deref())?,
            }
        }
        cluster.stop_leftover()?;
        cluster.launch()?;
        Ok(cluster)
    }

    /// How to reach it, as tokio-postgres, psql and a standby's `primary_conninfo` read it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.socket().display())
    }

    /// Its folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The folder of its programs.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Stops it without letting it finish, as a crash would: it recovers at the next start.
    ///
    /// # Errors
    ///
    /// [`ClusterError`].
    pub fn crash(&mut self) -> Result<(), ClusterError> {
        self.end("QUIT")
    }

    /// The pids of its processes: of the server, and of each connection and helper.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let Some(server) = &self.server else { return Vec::new() };
        let server = server.id().to_string();
        let children =
            fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap_or_default();
        std::iter::once(server).chain(children.split_whitespace().map(str::to_owned)).collect()
    }

    /// Whether it runs: it may have ended by itself.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        if self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(Some(_)))) {
            self.server = None;
        }
        self.server.is_some()
    }

    /// Starts it again after [`Cluster::crash`], or after it ended by itself.
    ///
    /// # Errors
    ///
    /// [`ClusterError`].
    pub fn launch(&mut self) -> Result<(), ClusterError> {
        let log_path = self.home.join("log");
        let log = fs::File::create(&log_path).map_err(|e| at(&log_path, e))?;
        let errors = log.try_clone().map_err(|e| at(&log_path, e))?;
        let mut command = self.program("postgres");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("-D").arg(self.data()).arg("-k").arg(self.socket());
        for setting in SETTINGS.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        // A signal to the terminal's foreground group is for this process alone, which then stops its servers.
        command.process_group(0).stdout(log).stderr(errors);
        let server = command.spawn().map_err(|e| at(&self.bin, e))?;
        self.server = Some(server);
        let until = Instant::now() + START;
        while !self.answers() {
            let exited = self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(Some(_))));
            if exited || Instant::now() > until {
                let detail = fs::read_to_string(&log_path).unwrap_or_default();
                return Err(ClusterError::Failed { what: "starting PostgreSQL", detail });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// One of its programs, run by whoever runs the server.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.current_dir("/").env_remove("PGDATA").stdin(Stdio::null());
        if let Some(Owner { uid, gid }) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn init(&self, wal: Option<&Path>) -> Result<(), ClusterError> {
        let mut command = self.program("initdb");
        command
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
                "-D",
            ])
            .arg(self.data());
        if let Some(wal) = wal {
            command.arg("-X").arg(wal);
        }
        run("initdb", command)
    }

    fn copy(&self, like: &Path) -> Result<(), ClusterError> {
        let mut command = Command::new("cp");
        command.args(["--archive", "--no-target-directory"]).arg(like.join("data")).arg(self.data());
        run("copying a server's files", command)
    }

    /// A server that a killed process left behind on this folder.
    fn stop_leftover(&self) -> Result<(), ClusterError> {
        let pid_file = self.data().join("postmaster.pid");
        let Some(pid) =
            fs::read_to_string(&pid_file).ok().and_then(|text| text.lines().next().map(str::to_owned))
        else {
            return Ok(());
        };
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() != "postgres" {
            return Ok(());
        }
        signal(&pid, "INT");
        let until = Instant::now() + START;
        while pid_file.exists() {
            if Instant::now() > until {
                return Err(ClusterError::Failed {
                    what: "stopping an old server",
                    detail: format!("pid {pid}"),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether it takes connections, if only for reading: the last line of its pid file says so.
    fn answers(&self) -> bool {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mine = self.server.as_ref().is_some_and(|server| text.starts_with(&format!("{}\n", server.id())));
        mine && text.lines().any(|line| matches!(line.trim(), "ready" | "standby"))
    }

    fn end(&mut self, how: &'static str) -> Result<(), ClusterError> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        signal(&server.id().to_string(), how);
        let until = Instant::now() + STOP;
        while server.try_wait().map_err(|e| at(&self.home, e))?.is_none() {
            if Instant::now() > until {
                // It hangs, or its processes were stopped: nothing that it keeps is worth waiting for ever.
                let _ = server.kill();
                let _ = server.wait();
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn socket(&self) -> PathBuf {
        self.home.join("s")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A fast shutdown; killing would leave shared memory behind.
        let _ = self.end("INT");
    }
}

/// `PG_BIN`, else the folder of `postgres` on the PATH, else the newest of Debian's.
fn find_binaries() -> Result<PathBuf, ClusterError> {
    let chosen = std::env::var_os("PG_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|folder| has_server(folder));
    let bin = chosen.or(on_path).or_else(newest_of_debian).filter(|bin| has_server(bin));
    let bin = bin.ok_or(ClusterError::NotInstalled)?;
    // Where links lead to there are all of its programs.
    let real = fs::canonicalize(bin.join("postgres")).map_err(|e| at(&bin, e))?;
    let bin = real.parent().filter(|folder| has_server(folder)).map_or(bin, Path::to_owned);

    let output = Command::new(bin.join("postgres")).arg("--version").output().map_err(|e| at(&bin, e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().nth(2).unwrap_or("of unknown version").to_owned();
    let major =
        version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<u32>().ok());
    if major.is_some_and(|major| major >= 15) { Ok(bin) } else { Err(ClusterError::TooOld { version, bin }) }
}

fn run(what: &'static str, mut command: Command) -> Result<(), ClusterError> {
    let output = command.output().map_err(|source| ClusterError::Io { what: what.into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::Failed { what, detail: String::from_utf8_lossy(&output.stderr).into_owned() })
}

fn has_server(folder: &Path) -> bool {
    folder.join("initdb").exists() && folder.join("postgres").exists()
}

fn newest_of_debian() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest =
        folders.map(|entry| entry.path()).filter(|path| has_server(&path.join("bin"))).max_by_key(version);
    newest.map(|path| path.join("bin"))
}

/// Whom root becomes; `None` for anybody else.
fn unprivileged() -> Result<Option<Owner>, ClusterError> {
    let me = fs::metadata("/proc/self").map_err(|e| at(Path::new("/proc/self"), e))?;
    if me.uid() != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(|e| at(Path::new("/etc/passwd"), e))?;
    let find = |wanted: &str| {
        users.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let is_it = fields.first() == Some(&wanted);
            is_it.then(|| {
                Some(Owner { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
            })?
        })
    };
    let owner = find("postgres").or_else(|| find("nobody"));
    owner.map(Some).ok_or(ClusterError::Failed {
        what: "dropping root's privileges",
        detail: "there is neither a user postgres nor a user nobody".into(),
    })
}

fn signal(pid: &str, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), pid]).status();
}

fn at(path: &Path, source: io::Error) -> ClusterError {
    ClusterError::Io { what: path.display().to_string(), source }
}
