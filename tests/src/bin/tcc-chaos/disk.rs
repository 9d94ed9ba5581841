//! A small disk, so that it can be full: a file system in memory, which root alone may mount.

use anyhow::{Context as _, ensure};
use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

/// Several times of what a server's log takes with [`SETTINGS`].
const SIZE: &str = "size=320m,mode=0711";
/// What keeps a server's log small, and makes it take a new file for each 16 MB: an old one that is used again needs no room.
pub const SETTINGS: [&str; 4] =
    ["max_wal_size=96MB", "min_wal_size=32MB", "wal_keep_size=64MB", "wal_recycle=off"];

/// A disk, mounted as long as this lives.
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts one in a folder that is made for it.
    pub fn mount(at: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(at).context("making a folder for a disk")?;
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(at).output();
        let mount = mount.context("running mount")?;
        ensure!(
            mount.status.success(),
            "cannot mount a disk: {}",
            String::from_utf8_lossy(&mount.stderr).trim()
        );
        Ok(Self { at: at.to_owned() })
    }

    /// The folder on it for a server's log.
    pub fn wal(&self) -> PathBuf {
        self.at.join("wal")
    }

    /// Takes all the room that is left.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut filler = File::create(self.filler()).context("making a file that fills a disk")?;
        let zeros = vec![0; 1024 * 1024];
        loop {
            match filler.write(&zeros) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("filling a disk"),
            }
        }
    }

    /// Gives it back.
    pub fn free(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("freeing a disk"),
            _ => Ok(()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmount = |how: &[&str]| Command::new("umount").args(how).arg(&self.at).output();
        // Whatever is still at work there loses it.
        if !unmount(&[]).is_ok_and(|output| output.status.success()) {
            let _ = unmount(&["--lazy"]);
        }
    }
}
