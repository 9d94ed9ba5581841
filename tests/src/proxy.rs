//! A wire to a PostgreSQL server on which things go wrong when they are told to.
//!
//! It knows enough of PostgreSQL's protocol to see where a commit is asked for, so that it can be cut at the worst moment: the
//! server has the COMMIT, and its answer never arrives.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How a wire is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it should be.
    Whole,
    /// Nothing moves, and nobody is told.
    Stalled,
    /// What the server says is lost.
    Deaf,
    /// Little by little.
    Slow,
    /// There is none.
    Cut,
}

/// Where a statement outside of a transaction ends, or a transaction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitsBy {
    /// Each statement commits: with Sync.
    Sync,
    /// By a COMMIT of its own.
    Commit,
}

/// A wire, as long as this lives.
pub struct Proxy {
    address: SocketAddr,
    control: Arc<Control>,
    stop: CancellationToken,
}

struct Control {
    mode: watch::Sender<Mode>,
    cuts_next_commit: AtomicBool,
    commits_by: CommitsBy,
}

/// How long the server has to do a commit whose answer is to be lost.
const COMMITTING: Duration = Duration::from_millis(30);
/// How much passes a slow wire at a time, and how often.
const SLOW: (usize, Duration) = (256, Duration::from_millis(10));

impl Proxy {
    /// A wire to the server with this socket.
    ///
    /// # Errors
    ///
    /// If there is no port to listen on.
    pub async fn start(socket: PathBuf, commits_by: CommitsBy) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mode = watch::Sender::new(Mode::Whole);
        let control = Arc::new(Control { mode, cuts_next_commit: AtomicBool::new(false), commits_by });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(
            listener,
            socket,
            Arc::clone(&control),
            stop.clone(),
        )));
        Ok(Self { address, control, stop })
    }

    /// How to reach the server over it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.address.port())
    }

    /// Makes it so.
    pub fn set(&self, mode: Mode) {
        self.control.mode.send_replace(mode);
    }

    /// Cuts the connection on which the next commit is asked for, when the server has it.
    pub fn cut_next_commit(&self) {
        self.control.cuts_next_commit.store(true, Ordering::SeqCst);
    }

    /// Whether that commit has not come yet.
    #[must_use]
    pub fn cuts_next_commit(&self) -> bool {
        self.control.cuts_next_commit.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, socket: PathBuf, control: Arc<Control>, stop: CancellationToken) {
    while let Ok((client, _)) = listener.accept().await {
        if *control.mode.borrow() == Mode::Cut {
            continue;
        }
        let Ok(server) = UnixStream::connect(&socket).await else { continue };
        let _ = client.set_nodelay(true);
        let ended = stop.child_token();
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            ended.clone().run_until_cancelled(connection(client, server, control, &ended)).await;
        });
    }
}

/// One connection, until either side closes it, or it is cut.
async fn connection(client: TcpStream, server: UnixStream, control: Arc<Control>, ended: &CancellationToken) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut mode = control.mode.subscribe();
    let is_cut = AtomicBool::new(false);
    tokio::select! {
        _ = ask(from_client, to_server, &control, &is_cut, ended) => {}
        _ = answer(from_server, to_client, &control, &is_cut) => {}
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// What the client says, message by message.
async fn ask(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    control: &Control,
    is_cut: &AtomicBool,
    ended: &CancellationToken,
) -> io::Result<()> {
    let (mut said, mut has_begun, mut was_executed) = (Vec::new(), false, false);
    loop {
        if from.read_buf(&mut said).await? == 0 {
            return Ok(());
        }
        let (mut end, mut commits) = (0, false);
        // The first message has no type.
        while let Some(length) = message(&said[end..], has_begun) {
            let kind = said[end];
            if has_begun {
                let text = &said[end + 5..end + length];
                commits |= match control.commits_by {
                    CommitsBy::Commit => kind == b'Q' && text.starts_with(b"COMMIT"),
                    CommitsBy::Sync => kind == b'S' && was_executed,
                };
                was_executed = kind == b'E' || (was_executed && kind != b'S');
            }
            has_begun = true;
            end += length;
        }
        let whole: Vec<u8> = said.drain(..end).collect();
        let cuts = commits && control.cuts_next_commit.swap(false, Ordering::SeqCst);
        // Before the server has it: its answer must not slip through.
        is_cut.store(cuts, Ordering::SeqCst);
        pass(&whole, &mut to, control).await?;
        if cuts {
            sleep(COMMITTING).await;
            ended.cancel();
        }
    }
}

/// The length of the message that these bytes begin with, if all of it is there.
fn message(bytes: &[u8], has_type: bool) -> Option<usize> {
    let kind = usize::from(has_type);
    let length: [u8; 4] = bytes.get(kind..kind + 4)?.try_into().ok()?;
    let length = kind + u32::from_be_bytes(length) as usize;
    (bytes.len() >= length).then_some(length)
}

/// What the server says.
async fn answer(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    control: &Control,
    is_cut: &AtomicBool,
) -> io::Result<()> {
    let mut said = vec![0; 16 * 1024];
    let mut has_lost = false;
    loop {
        let length = from.read(&mut said).await?;
        let mode = *control.mode.borrow();
        // After a word was lost the rest makes no sense.
        if length == 0 || (has_lost && mode != Mode::Deaf) {
            return Ok(());
        }
        if mode == Mode::Deaf || is_cut.load(Ordering::SeqCst) {
            has_lost = true;
            continue;
        }
        pass(&said[..length], &mut to, control).await?;
    }
}

async fn pass(bytes: &[u8], to: &mut (impl AsyncWrite + Unpin), control: &Control) -> io::Result<()> {
    let mut mode = control.mode.subscribe();
    let _ = mode.wait_for(|mode| *mode != Mode::Stalled).await;
    if *mode.borrow() != Mode::Slow {
        return to.write_all(bytes).await;
    }
    for some in bytes.chunks(SLOW.0) {
        to.write_all(some).await?;
        sleep(SLOW.1).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_where_its_length_says() {
        assert_eq!(message(&[0, 0, 0, 8, 0, 3, 0, 0, b'Q'], false), Some(8));
        assert_eq!(message(&[b'S', 0, 0, 0, 4, b'Q'], true), Some(5));
        assert_eq!(message(&[b'Q', 0, 0, 0, 11, b'C'], true), None);
        assert_eq!(message(&[0, 0], false), None);
    }
}
