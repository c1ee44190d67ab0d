//! `pg_replslot`: what a stopped server knows of its slots, and putting another server's slot into it.
//!
//! The file is `ReplicationSlotOnDisk` of PostgreSQL's `slot.c`: magic, checksum, version, length (4 bytes each), then
//! the persistent data. Up to the position confirmed by the consumer its layout is the same in 14 to 18.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::files::{self, Error, at, optional};
use crate::model::Lsn;

/// `SLOT_MAGIC`.
const MAGIC: u32 = 0x0105_1CA1;
const NAME: usize = 16;
const NAME_LEN: usize = 64;
const DATABASE: usize = NAME + NAME_LEN;
const RESTART: usize = DATABASE + 16;
const CONFIRMED: usize = RESTART + 16;
/// Least length of a file that has all of these.
const LEAST: usize = CONFIRMED + 8;
/// More than any version writes.
pub const SIZE_MAX: usize = 4096;

/// A slot as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFile {
    /// Name.
    pub name: String,
    /// It belongs to a database.
    pub logical: bool,
    /// Oldest WAL it keeps.
    pub restart: Lsn,
    /// Confirmed by the consumer; zero for a physical slot.
    pub confirmed: Lsn,
}

/// Reads a state file; `None` if it is none.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<SlotFile> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let length = usize::try_from(u32_at(12)?).ok()?;
    if bytes.len() < LEAST || u32_at(0)? != MAGIC || length.checked_add(NAME)? != bytes.len() {
        return None;
    }
    let name = bytes.get(NAME..DATABASE)?.split(|byte| *byte == 0).next()?;
    Some(SlotFile {
        name: std::str::from_utf8(name).ok()?.to_owned(),
        logical: u32_at(DATABASE)? != 0,
        restart: Lsn(u64_at(RESTART)?),
        confirmed: Lsn(u64_at(CONFIRMED)?),
    })
}

/// The slots of a stopped server. What cannot be read is left out.
#[must_use]
pub fn read_all(data_dir: &Path) -> Vec<SlotFile> {
    let entries = fs::read_dir(data_dir.join("pg_replslot")).into_iter().flatten();
    let dirs = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let unfinished = |dir: &Path| dir.extension().is_some_and(|end| end == "tmp");
    dirs.filter(|dir| !unfinished(dir))
        .filter_map(|dir| parse(&fs::read(dir.join("state")).ok()?))
        .collect()
}

/// Puts a slot into a stopped server, in the place of one of the same name. Complete or not at all: PostgreSQL removes
/// directories whose name ends in `.tmp` when it starts (`StartupReplicationSlots`), also the replaced one.
///
/// # Errors
/// The step that failed.
pub fn install(data_dir: &Path, name: &str, state: &[u8]) -> Result<(), Error> {
    let parent = data_dir.join("pg_replslot");
    let dir = parent.join(name);
    let new = parent.join(format!("{name}.tmp"));
    // One that a crash has left is as good as a new one.
    if !new.is_dir() {
        at("create", &new, fs::create_dir(&new))?;
    }
    let mode = files::file_mode(data_dir);
    let dir_mode = if mode & 0o040 == 0 { 0o700 } else { 0o750 };
    let permissions = fs::Permissions::from_mode(dir_mode);
    at("change the mode of", &new, fs::set_permissions(&new, permissions))?;
    files::write_atomic(&new.join("state"), state, mode)?;
    let old = parent.join(format!("{name}.{}.old.tmp", std::process::id()));
    optional("rename", &dir, fs::rename(&dir, &old))?;
    at("rename", &new, fs::rename(&new, &dir))?;
    files::sync_dir(&dir)?;
    files::sync_dir(&parent)
}

/// Where the WAL of this data directory begins; `None` if it has none.
#[must_use]
pub fn oldest_wal(data_dir: &Path) -> Option<Lsn> {
    let entries = fs::read_dir(data_dir.join("pg_wal")).ok()?;
    let segments = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        if name.len() != 24 {
            return None;
        }
        let hex = |range: std::ops::Range<usize>| u64::from_str_radix(name.get(range)?, 16).ok();
        let (high, low) = (hex(8..16)?, hex(16..24)?);
        let size = entry.metadata().ok()?.len();
        // Every segment has the same size, which divides 4 GiB.
        Some(Lsn((high << 32).checked_add(low.checked_mul(size)?)?))
    });
    segments.min()
}

/// Bytes from pairs of hexadecimal digits.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str, database: u32, restart: u64, confirmed: u64) -> Vec<u8> {
        let mut bytes = vec![0; 200];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_ne_bytes());
        put(12, &184_u32.to_ne_bytes());
        put(NAME, name.as_bytes());
        put(DATABASE, &database.to_ne_bytes());
        put(RESTART, &restart.to_ne_bytes());
        put(CONFIRMED, &confirmed.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_state_is_read_and_anything_else_is_not() {
        let bytes = state("s", 5, 7, 9);
        let expected = SlotFile {
            name: "s".into(),
            logical: true,
            restart: Lsn(7),
            confirmed: Lsn(9),
        };
        assert_eq!(parse(&bytes), Some(expected));
        assert_eq!(parse(&bytes[..190]), None, "cut short");
        assert_eq!(parse(b"junk"), None);
        let mut other = bytes;
        other[0] ^= 1;
        assert_eq!(parse(&other), None, "another magic");
    }

    #[test]
    fn an_installed_slot_replaces_the_one_of_that_name() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("pg_replslot")).expect("create");
        for confirmed in [1, 2] {
            install(dir.path(), "s", &state("s", 5, 1, confirmed)).expect("install");
            let read = read_all(dir.path());
            assert_eq!(read.len(), 1, "what is left of the old one is not a slot");
            assert_eq!(read[0].confirmed, Lsn(confirmed));
        }
    }

    #[test]
    fn wal_begins_with_its_oldest_segment() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(oldest_wal(dir.path()), None);
        let wal = dir.path().join("pg_wal");
        fs::create_dir(&wal).expect("create");
        for name in [
            "000000020000000100000003",
            "000000010000000100000002",
            "00000002.history",
            "000000010000000100000001.partial",
        ] {
            fs::write(wal.join(name), [0; 4096]).expect("write");
        }
        assert_eq!(oldest_wal(dir.path()), Some(Lsn((1 << 32) + 2 * 4096)));
    }

    #[test]
    fn hexadecimal_is_read() {
        assert_eq!(from_hex("00ff"), Some(vec![0, 255]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
    }
}
