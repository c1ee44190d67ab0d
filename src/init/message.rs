//! The records an agent sends to init, and the form in which init hands the last one to the next
//! agent. Encoding and decoding only; the socket belongs to `supervisor.rs` and `guard.rs`.
//!
//! A record is one packet of 24 bytes, little-endian:
//!
//! ```text
//! 0   4  "HWDH"
//! 4   1  version, 1
//! 5   1  kind: 1 deadline, 2 disarm, 3 stopping, 4 leaving
//! 6   2  zero
//! 8   8  fence deadline, CLOCK_BOOTTIME nanoseconds (kind 1, otherwise zero)
//! 16  8  token of the lease, signed (kind 1, otherwise zero)
//! ```
//!
//! Init and agent are the same binary, so the version only guards against a binary that was
//! exchanged under a running init.

use std::fmt;
use std::str::FromStr;

use crate::clock::Boottime;

/// Size of a record, in bytes.
pub const LENGTH: usize = 24;

const MAGIC: [u8; 4] = *b"HWDH";
const VERSION: u8 = 1;

/// Up to when this node may be primary, and by which lease.
///
/// Its text form `<nanoseconds>:<token>` is the value of `HOWDAH_ADOPT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// From this moment on no process of this node may acknowledge a commit.
    pub until: Boottime,
    /// The lease of the leader lock, as the DCS backend names it (etcd: the lease id).
    pub token: i64,
}

/// What an agent tells init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The fence is armed, or its deadline moved; the last record counts, also if it is earlier.
    Deadline(Deadline),
    /// Postgres is down or read-only: nothing to fence.
    Disarm,
    /// The agent is stopping on purpose (not by a signal through init): if it dies on the way, do
    /// not start it again.
    Stopping,
    /// As [`Message::Stopping`], and postgres is to go on without us: the cluster is paused. Not for an init whose end is
    /// the end of everything (PID 1 of a container).
    Leaving,
}

/// Why a record was refused. Init ignores such a record; an armed deadline stays armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not one whole record.
    #[error("a record has {LENGTH} bytes, this one {0}")]
    Length(usize),
    /// The first four bytes are not ours.
    #[error("the record does not begin with HWDH")]
    Magic,
    /// Written by another version of the program.
    #[error("record version {0}, this init knows {VERSION}")]
    Version(u8),
    /// A kind this version does not define.
    #[error("unknown kind of record {0}")]
    Kind(u8),
}

impl Message {
    /// The record as it goes over the socket.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let (kind, until, token) = match self {
            Self::Deadline(deadline) => (1, deadline.until.0, deadline.token),
            Self::Disarm => (2, 0, 0),
            Self::Stopping => (3, 0, 0),
            Self::Leaving => (4, 0, 0),
        };
        let mut record = [0; LENGTH];
        record[..4].copy_from_slice(&MAGIC);
        record[4] = VERSION;
        record[5] = kind;
        record[8..16].copy_from_slice(&until.to_le_bytes());
        record[16..].copy_from_slice(&token.to_le_bytes());
        record
    }

    /// Reads one packet.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let record: [u8; LENGTH] = packet.try_into().map_err(|_| DecodeError::Length(packet.len()))?;
        if record[..4] != MAGIC {
            return Err(DecodeError::Magic);
        }
        if record[4] != VERSION {
            return Err(DecodeError::Version(record[4]));
        }
        match record[5] {
            1 => Ok(Self::Deadline(Deadline {
                until: Boottime(u64::from_le_bytes(eight(&record, 8))),
                token: i64::from_le_bytes(eight(&record, 16)),
            })),
            2 => Ok(Self::Disarm),
            3 => Ok(Self::Stopping),
            4 => Ok(Self::Leaving),
            kind => Err(DecodeError::Kind(kind)),
        }
    }
}

fn eight(record: &[u8; LENGTH], from: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&record[from..from + 8]);
    bytes
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.until.0, self.token)
    }
}

/// The text is not `<nanoseconds>:<token>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not <boottime nanoseconds>:<token>")]
pub struct ParseDeadlineError {
    /// What was to be read.
    pub text: String,
}

impl FromStr for Deadline {
    type Err = ParseDeadlineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (until, token) = text.split_once(':')?;
            let until = Boottime(until.parse().ok()?);
            Some(Self {
                until,
                token: token.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ParseDeadlineError {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Deadline = Deadline {
        until: Boottime(0x0102_0304_0506_0708),
        token: -2,
    };

    #[test]
    fn every_message_survives_the_way_over_the_socket() {
        for message in [
            Message::Deadline(DEADLINE),
            Message::Disarm,
            Message::Stopping,
            Message::Leaving,
        ] {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn the_bytes_of_a_deadline_are_as_documented() {
        let expected = [
            b'H', b'W', b'D', b'H', 1, 1, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xff, 0xff,
        ];
        assert_eq!(Message::Deadline(DEADLINE).encode(), expected);
    }

    #[test]
    fn a_damaged_record_is_refused_with_the_reason() {
        let good = Message::Disarm.encode();
        let with = |at: usize, byte: u8| {
            let mut bad = good;
            bad[at] = byte;
            Message::decode(&bad)
        };
        assert_eq!(Message::decode(&[]), Err(DecodeError::Length(0)));
        assert_eq!(Message::decode(&good[..23]), Err(DecodeError::Length(23)));
        assert_eq!(Message::decode(&[0; 25]), Err(DecodeError::Length(25)));
        assert_eq!(with(0, b'h'), Err(DecodeError::Magic));
        assert_eq!(with(4, 2), Err(DecodeError::Version(2)));
        assert_eq!(with(5, 0), Err(DecodeError::Kind(0)));
        assert_eq!(with(5, 5), Err(DecodeError::Kind(5)));
    }

    #[test]
    fn a_deadline_is_handed_on_as_text() {
        let text = DEADLINE.to_string();
        assert_eq!(text, "72623859790382856:-2");
        assert_eq!(text.parse(), Ok(DEADLINE));
        for bad in [
            "",
            ":",
            "1",
            "1:",
            ":1",
            "-1:1",
            "1:2:3",
            "1:x",
            "18446744073709551616:0",
        ] {
            assert!(bad.parse::<Deadline>().is_err(), "{bad:?}");
        }
    }
}
