//! ZooKeeper's wire format (jute): requests to bytes, bytes to what the server says. Pure.
//!
//! Source: `zookeeper.jute` and `ZooDefs.java` of ZooKeeper 3.8. All numbers are big-endian; a text or a buffer is its
//! length and its bytes.

use super::Acl;

/// Kinds of requests.
pub(super) mod op {
    pub(in super::super) const CREATE: i32 = 1;
    pub(in super::super) const DELETE: i32 = 2;
    pub(in super::super) const EXISTS: i32 = 3;
    pub(in super::super) const GET_DATA: i32 = 4;
    pub(in super::super) const SET_DATA: i32 = 5;
    pub(in super::super) const GET_CHILDREN: i32 = 8;
    pub(in super::super) const PING: i32 = 11;
    pub(in super::super) const CHECK: i32 = 13;
    pub(in super::super) const MULTI: i32 = 14;
    pub(in super::super) const AUTH: i32 = 100;
    pub(in super::super) const ADD_WATCH: i32 = 106;
    /// In answers to a transaction: this step failed.
    pub(in super::super) const ERROR: i32 = -1;
}

/// Errors with a meaning of their own.
pub(super) mod code {
    pub(in super::super) const RUNTIME_INCONSISTENCY: i32 = -2;
    pub(in super::super) const UNIMPLEMENTED: i32 = -6;
    pub(in super::super) const NO_NODE: i32 = -101;
    pub(in super::super) const NO_AUTH: i32 = -102;
    pub(in super::super) const BAD_VERSION: i32 = -103;
    pub(in super::super) const NODE_EXISTS: i32 = -110;
    pub(in super::super) const SESSION_EXPIRED: i32 = -112;
    pub(in super::super) const INVALID_ACL: i32 = -114;
    pub(in super::super) const AUTH_FAILED: i32 = -115;
    pub(in super::super) const SESSION_MOVED: i32 = -118;
}

/// Numbers of answers that belong to no request.
pub(super) mod xid {
    pub(in super::super) const EVENT: i32 = -1;
    pub(in super::super) const PING: i32 = -2;
    pub(in super::super) const AUTH: i32 = -4;
}

const EPHEMERAL: i32 = 1;
/// Matches any version.
const ANY: i32 = -1;
/// Below a path, and everything that happens to it, until the connection ends.
const PERSISTENT_RECURSIVE: i32 = 1;

/// A record under construction.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Record(Vec<u8>);

impl Record {
    pub(super) fn bytes(self) -> Vec<u8> {
        self.0
    }

    fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn bool(mut self, value: bool) -> Self {
        self.0.push(u8::from(value));
        self
    }

    fn buffer(self, value: &[u8]) -> Self {
        // No record is that long: the server refuses what is longer than a megabyte.
        let mut this = self.int(i32::try_from(value.len()).unwrap_or(i32::MAX));
        this.0.extend(value);
        this
    }

    fn text(self, value: &str) -> Self {
        self.buffer(value.as_bytes())
    }

    fn acls(self, acls: &[Acl]) -> Self {
        let mut this = self.int(i32::try_from(acls.len()).unwrap_or(i32::MAX));
        for acl in acls {
            this = this
                .int(i32::try_from(acl.permissions).unwrap_or(i32::MAX))
                .text(&acl.scheme)
                .text(&acl.id);
        }
        this
    }

    fn append(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// First word on a connection: a new session (id 0), or one to go on with.
pub(super) fn connect(timeout_ms: i32, session: i64, password: &[u8]) -> Record {
    Record::default()
        .int(0)
        .long(0)
        .int(timeout_ms)
        .long(session)
        .buffer(password)
        .bool(false)
}

/// A request's frame without its length.
pub(super) fn request(xid: i32, op: i32, body: Record) -> Vec<u8> {
    Record::default().int(xid).int(op).append(body).bytes()
}

pub(super) fn auth(scheme: &str, credential: &str) -> Record {
    Record::default().int(0).text(scheme).text(credential)
}

/// Of `getData`, `exists`, `getChildren`.
pub(super) fn path(path: &str) -> Record {
    Record::default().text(path).bool(false)
}

pub(super) fn add_watch(path: &str) -> Record {
    Record::default().text(path).int(PERSISTENT_RECURSIVE)
}

/// One change, or one condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Makes a node, bound to the session or not.
    Create {
        path: String,
        value: String,
        ephemeral: bool,
    },
    /// Replaces the value; with a version only if it still has that.
    Set {
        path: String,
        value: String,
        version: Option<i32>,
    },
    Delete {
        path: String,
    },
    /// The node must have this version; `None`: must be there.
    Check {
        path: String,
        version: Option<i32>,
    },
}

impl Change {
    pub(super) fn op(&self) -> i32 {
        match self {
            Self::Create { .. } => op::CREATE,
            Self::Set { .. } => op::SET_DATA,
            Self::Delete { .. } => op::DELETE,
            Self::Check { .. } => op::CHECK,
        }
    }

    pub(super) fn record(&self, acls: &[Acl]) -> Record {
        match self {
            Self::Create {
                path,
                value,
                ephemeral,
            } => Record::default()
                .text(path)
                .text(value)
                .acls(acls)
                .int(if *ephemeral { EPHEMERAL } else { 0 }),
            Self::Set { path, value, version } => Record::default()
                .text(path)
                .text(value)
                .int(version.unwrap_or(ANY)),
            Self::Delete { path } => Record::default().text(path).int(ANY),
            Self::Check { path, version } => Record::default().text(path).int(version.unwrap_or(ANY)),
        }
    }
}

/// All of these changes or none.
pub(super) fn multi(changes: &[Change], acls: &[Acl]) -> Record {
    let mut record = Record::default();
    for change in changes {
        record = record
            .int(change.op())
            .bool(false)
            .int(-1)
            .append(change.record(acls));
    }
    record.int(-1).bool(true).int(-1)
}

/// Reads a record; every method gives `None` once there is nothing left, or nonsense.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn long(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bool(&mut self) -> Option<bool> {
        Some(self.take(1)?[0] != 0)
    }

    /// A null buffer has the length -1 and counts as empty.
    pub(super) fn buffer(&mut self) -> Option<&'a [u8]> {
        match self.int()? {
            -1 => Some(&[]),
            length => self.take(usize::try_from(length).ok()?),
        }
    }

    pub(super) fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.buffer()?).into_owned())
    }

    pub(super) fn texts(&mut self) -> Option<Vec<String>> {
        let count = self.int()?;
        (0..count).map(|_| self.text()).collect()
    }
}

/// The server's answer to the first word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    /// What the server counts with; 0: the session is over.
    pub(super) timeout_ms: i32,
    pub(super) session: i64,
    pub(super) password: Vec<u8>,
}

pub(super) fn greeting(bytes: &[u8]) -> Option<Greeting> {
    let mut reader = Reader(bytes);
    let _protocol = reader.int()?;
    Some(Greeting {
        timeout_ms: reader.int()?,
        session: reader.long()?,
        password: reader.buffer()?.to_vec(),
    })
}

/// What we need of a node's `Stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stat {
    /// Transaction that changed the value last; no other change of any node has the same.
    pub(super) mzxid: i64,
    /// Changes of the value since the node was made.
    pub(super) version: i32,
    /// Session it is bound to; 0 for none.
    pub(super) owner: i64,
}

/// A node's `Stat` and nothing behind it. Nothing in the protocol tells a garbled answer from a good one, so what must be true
/// of one is looked at: `newest` is the last transaction its server had seen, `size` that of the value that came along.
pub(super) fn stat(bytes: &[u8], newest: i64, size: Option<usize>) -> Option<Stat> {
    let mut reader = Reader(bytes);
    let czxid = reader.long()?;
    let mzxid = reader.long()?;
    let _times = (reader.long()?, reader.long()?);
    let version = reader.int()?;
    let _others = (reader.int()?, reader.int()?);
    let owner = reader.long()?;
    let length = usize::try_from(reader.int()?).ok()?;
    let children = reader.int()?;
    let pzxid = reader.long()?;
    let in_order = 0 < czxid && czxid <= mzxid.min(pzxid) && mzxid.max(pzxid) <= newest;
    let fits = size.is_none_or(|size| size == length) && version >= 0 && children >= 0;
    (in_order && fits && reader.0.is_empty()).then_some(Stat {
        mzxid,
        version,
        owner,
    })
}

/// One that nothing is known about: only its length counts.
fn skip_stat(reader: &mut Reader<'_>) -> Option<()> {
    const LENGTH: usize = 68;
    reader.0 = reader.0.get(LENGTH..)?;
    Some(())
}

/// The answer to a transaction: done, or the error of the first step that failed.
pub(super) fn outcome(bytes: &[u8]) -> Option<Result<(), i32>> {
    let mut reader = Reader(bytes);
    let mut failed = None;
    loop {
        let (op, done, _) = (reader.int()?, reader.bool()?, reader.int()?);
        if done {
            break;
        }
        match op {
            op::CREATE => _ = reader.text()?,
            op::SET_DATA => skip_stat(&mut reader)?,
            op::DELETE | op::CHECK => {}
            op::ERROR => {
                let error = reader.int()?;
                // Steps beside the one that failed have no error of their own.
                if error != 0 && error != code::RUNTIME_INCONSISTENCY {
                    failed = failed.or(Some(error));
                }
            }
            _ => return None,
        }
    }
    Some(failed.map_or(Ok(()), Err))
}

/// What happened to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    Created,
    Deleted,
    Changed,
    /// Something else, or to the session.
    Other,
}

pub(super) fn event(bytes: &[u8]) -> Option<(Happened, String)> {
    let mut reader = Reader(bytes);
    let happened = match reader.int()? {
        1 => Happened::Created,
        2 => Happened::Deleted,
        3 => Happened::Changed,
        _ => Happened::Other,
    };
    let _state = reader.int()?;
    Some((happened, reader.text()?))
}

/// An error's name, for people.
pub(super) fn name(error: i32) -> String {
    match error {
        code::UNIMPLEMENTED => {
            "this server lacks what is asked of it; ZooKeeper 3.6 or newer is needed".into()
        }
        code::NO_NODE => "no such node".into(),
        code::NO_AUTH => "not allowed".into(),
        code::BAD_VERSION => "the version is another one".into(),
        code::NODE_EXISTS => "the node is there already".into(),
        code::SESSION_EXPIRED => "the session is over".into(),
        code::INVALID_ACL => "the ACL is not valid".into(),
        code::AUTH_FAILED => "the credentials are wrong".into(),
        code::SESSION_MOVED => "the session has moved to another server".into(),
        other => format!("error {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_the_server_reads() {
        assert_eq!(
            request(7, op::GET_DATA, path("/a")),
            [0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, 2, b'/', b'a', 0]
        );
        let check = multi(
            &[Change::Check {
                path: "/a".into(),
                version: None,
            }],
            &[],
        );
        let mut expected = vec![
            0, 0, 0, 13, 0, 255, 255, 255, 255, 0, 0, 0, 2, b'/', b'a', 255, 255, 255, 255,
        ];
        expected.extend([255, 255, 255, 255, 1, 255, 255, 255, 255]);
        assert_eq!(check.bytes(), expected);
    }

    #[test]
    fn a_failed_transaction_tells_the_step_that_failed() {
        let header = |op: i32, done: bool| Record::default().int(op).bool(done).int(-1);
        let body = header(op::ERROR, false)
            .int(0)
            .append(header(op::ERROR, false).int(code::BAD_VERSION))
            .append(header(op::ERROR, false).int(code::RUNTIME_INCONSISTENCY))
            .append(header(-1, true));
        assert_eq!(outcome(&body.clone().bytes()), Some(Err(code::BAD_VERSION)));
        let cut = &body.bytes()[..20];
        assert_eq!(outcome(cut), None);
    }

    #[test]
    fn nonsense_is_no_answer() {
        assert_eq!(greeting(&[0; 7]), None);
        assert_eq!(event(&[0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 9, b'/']), None);
        assert_eq!(Reader(&[127, 255, 255, 255]).texts(), None);
        assert_eq!(Reader(&[255, 255, 255, 255]).buffer(), Some(&[][..]));
    }
}
