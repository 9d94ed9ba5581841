//! A real `tccd` process, one of `tcc-ledgerd`, or any other of this repository, which can be killed like one.
//!
//! Tests and the demo start it on servers that run already, kill it with SIGKILL at a moment of their choice, and start it
//! again with the same configuration on the same port, as an init system would. Nothing of the coordinator is linked in here
//! but the form of its configuration: what is known about the process comes over its standard output, its exit status and
//! its API. Its log goes to a file beside its configuration, and into the errors of this module.

use anyhow::{Context as _, bail, ensure};
use std::{
    env, fs,
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tcc_coordinator::config::Config;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// How long it may take from the start to the line that says it serves.
const START: Duration = Duration::from_secs(60);
/// So many lines of its log stand in an error.
const TAIL: usize = 40;

/// A `tccd serve` or a `tcc-ledgerd`, from its start until it is dropped, which kills it.
pub struct Tccd {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// Holds its configuration and its log; removed with the handle.
    folder: TempDir,
    url: String,
    child: Option<Child>,
    crash_at: Option<String>,
    environment: Vec<(String, String)>,
}

impl Tccd {
    /// Starts it and waits until it serves. If `config` asks for port 0, a free port is chosen here, so that every later
    /// start has the same.
    ///
    /// # Errors
    ///
    /// If `tccd` is not built, or does not get ready within a minute; the error ends with its log.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        Self::start_in(config, Vec::new()).await
    }

    /// As [`Tccd::start`], with these environment variables at every start.
    ///
    /// # Errors
    ///
    /// As [`Tccd::start`].
    pub async fn start_in(config: &Config, environment: Vec<(String, String)>) -> anyhow::Result<Self> {
        let mut config = config.clone();
        if let Some(host) = config.listen.strip_suffix(":0") {
            config.listen = free_address(host)?;
        }
        // Several of them on one machine must not meet on the port that is meant for one.
        config.telemetry.listen = "127.0.0.1:0".into();
        let url = format!("http://{}", config.listen);
        Self::start_program("tccd", vec!["serve".into()], url, &config, environment).await
    }

    /// As [`Tccd::start`], a `tcc-ledgerd` for one shard of `config`.
    ///
    /// # Errors
    ///
    /// As [`Tccd::start`].
    pub async fn ledgerd(config: &Config, shard: &str) -> anyhow::Result<Self> {
        Self::ledgerd_with(config, shard, &[]).await
    }

    /// As [`Tccd::ledgerd`], with more arguments; over TLS if they name a certificate.
    ///
    /// # Errors
    ///
    /// As [`Tccd::start`].
    pub async fn ledgerd_with(config: &Config, shard: &str, more: &[&str]) -> anyhow::Result<Self> {
        let listen = free_address("127.0.0.1")?;
        let scheme = if more.contains(&"--certificate") { "https" } else { "http" };
        let arguments = [&["--shard", shard, "--listen", &listen], more].concat();
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        Self::start_program("tcc-ledgerd", arguments, format!("{scheme}://{listen}"), config, Vec::new())
            .await
    }

    async fn start_program(
        name: &'static str,
        arguments: Vec<String>,
        url: String,
        config: &Config,
        environment: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("tccd-").tempdir().context("making a folder for tccd")?;
        let text = toml::to_string(config).context("writing tccd's configuration")?;
        fs::write(folder.path().join("tccd.toml"), text).context("writing tccd's configuration")?;
        let program = find_program(name)?;
        let mut tccd =
            Self { name, program, arguments, folder, url, child: None, crash_at: None, environment };
        tccd.restart().await?;
        Ok(tccd)
    }

    /// From the next start on it dies when it gets to this point for the `nth` time; see [`tcc_participant::crash`].
    pub fn crash_at(&mut self, point: Option<(&str, u32)>) {
        self.crash_at = point.map(|(point, nth)| format!("{point} {nth}"));
    }

    /// Whether it has ended by itself; then it can be started again.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(child) = &mut self.child else { return Ok(true) };
        let has_ended = child.try_wait().context("looking for tccd")?.is_some();
        if has_ended {
            self.child = None;
        }
        Ok(has_ended)
    }

    /// Where its API is: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Kills it with SIGKILL and returns when it is gone.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("tccd does not run")?;
        child.kill().await.context("killing tccd")
    }

    /// Sends it a signal, such as `STOP`.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let id = self.id().context("tccd does not run")?.to_string();
        let sent =
            Command::new("kill").args([&format!("-{name}"), &id]).status().await.context("running kill")?;
        ensure!(sent.success(), "kill -{name} {id} failed");
        Ok(())
    }

    /// Sends SIGTERM and returns how it ended.
    ///
    /// # Errors
    ///
    /// If it does not run, or has not ended after `patience`; then it is killed.
    pub async fn terminate(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        self.signal("TERM").await?;
        let mut child = self.child.take().context("tccd does not run")?;
        match timeout(patience, child.wait()).await {
            Ok(status) => status.context("waiting for tccd"),
            Err(_) => {
                child.kill().await.context("killing tccd")?;
                bail!("tccd was still there {patience:?} after SIGTERM. Its log ends:\n{}", self.log_tail())
            }
        }
    }

    /// Starts it again after [`Tccd::kill`] or [`Tccd::terminate`], and waits until it serves.
    ///
    /// # Errors
    ///
    /// As [`Tccd::start`], or if it runs.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "tccd runs already");
        let log =
            File::options().create(true).append(true).open(self.log_path()).context("opening tccd's log")?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg("--config")
            .arg(self.folder.path().join("tccd.toml"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(self.crash_at.iter().map(|point| ("TCC_CRASH_AT", point)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C on the terminal is for whoever holds this handle, and not for tccd behind its back.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let stdout = child.stdout.take().context("tccd has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();

        match timeout(START, wait_ready(self.name, &mut lines)).await {
            Ok(Ok(url)) => ensure!(url == self.url, "tccd serves on {url} instead of {}", self.url),
            Ok(Err(error)) => bail!("{error:#}. Its log ends:\n{}", self.log_tail()),
            Err(_) => bail!("tccd is not ready after {START:?}. Its log ends:\n{}", self.log_tail()),
        }
        // Whatever else it prints is read on, so that it can never block on a full pipe or die of a closed one.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
        Ok(())
    }

    /// The last lines of its log, over all its starts.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("tccd.log")
    }
}

/// Any other program of this repository, with its arguments: killed when dropped.
pub struct Program {
    name: &'static str,
    arguments: Vec<String>,
    log: PathBuf,
    url: String,
    child: Option<Child>,
    crash_at: Option<String>,
}

impl Program {
    /// Starts it, and waits until it says where it serves. Its log is appended to this file.
    ///
    /// # Errors
    ///
    /// If it is not built, or does not get ready.
    pub async fn start(
        name: &'static str,
        arguments: &[&str],
        log: &std::path::Path,
    ) -> anyhow::Result<Self> {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (log, url) = (log.to_owned(), String::new());
        let mut program = Self { name, arguments, log, url, child: None, crash_at: None };
        program.restart().await?;
        Ok(program)
    }

    /// Where it serves.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From the next start on it dies when it gets to this point for the `nth` time; see [`tcc_participant::crash`].
    pub fn crash_at(&mut self, point: Option<(&str, u32)>) {
        self.crash_at = point.map(|(point, nth)| format!("{point} {nth}"));
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(child) = &mut self.child else { return Ok(true) };
        let has_ended = child.try_wait().with_context(|| format!("looking for {}", self.name))?.is_some();
        if has_ended {
            self.child = None;
        }
        Ok(has_ended)
    }

    /// Kills it with SIGKILL and returns when it is gone.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    /// Starts it again.
    ///
    /// # Errors
    ///
    /// As [`Program::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log).context("opening a log")?;
        let mut child = Command::new(find_program(self.name)?)
            .args(&self.arguments)
            .envs(self.crash_at.iter().map(|point| ("TCC_CRASH_AT", point)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        let stdout = child.stdout.take().context("it has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        self.url = match timeout(START, wait_ready(self.name, &mut lines)).await {
            Ok(Ok(url)) => url,
            _ => {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
                bail!("{} does not get ready. Its log ends:\n{tail}", self.name)
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
        Ok(())
    }
}

/// An address with a port that is free at this moment, on this machine.
///
/// # Errors
///
/// If there is none.
pub fn free_local_address() -> anyhow::Result<String> {
    free_address("127.0.0.1")
}

/// Its line that it serves, of which the end is where.
async fn wait_ready(name: &str, lines: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<String> {
    let ready = format!("{name}: ready on ");
    while let Some(line) = lines.next_line().await.context("reading what tccd prints")? {
        if let Some(url) = line.strip_prefix(&ready) {
            return Ok(url.trim().to_owned());
        }
    }
    bail!("tccd ended before it was ready")
}

/// An address with a port that is free at this moment.
fn free_address(host: &str) -> anyhow::Result<String> {
    let probe = TcpListener::bind((host, 0)).with_context(|| format!("finding a free port on {host}"))?;
    Ok(probe.local_addr().context("finding a free port")?.to_string())
}

/// A program beside the running one, or one folder up: tests run in `deps`.
///
/// # Errors
///
/// If it is not built.
pub fn find_program(name: &str) -> anyhow::Result<PathBuf> {
    let me = env::current_exe().context("finding the running program")?;
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    let found = me.ancestors().skip(1).take(2).map(|folder| folder.join(&file)).find(|path| path.is_file());
    found.with_context(|| {
        let folder = me.parent().unwrap_or(&me).display();
        format!(
            "there is no {name} in {folder}: build it in the same profile with `cargo build --workspace --bins`"
        )
    })
}
