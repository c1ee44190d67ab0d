//! All keys of the cluster as of one moment.
//!
//! ZooKeeper reads one node at a time, and from the server that is asked, which may lag. So a look begins with a
//! transaction, after which the server has all that was written before. It is of one moment if no transaction came
//! between that one and the last answer; on a server that never rests, if all was the same twice in a row: then it was
//! so between the two.

use tokio::time::{Instant, timeout_at};

use super::{
    Change, Failure, ZooKeeper, code,
    jute::{Reader, Stat},
    node_of, nonsense, version_of,
    wire::{Ask, Reply, Wire},
};
use crate::{dcs::DcsError, model::Entry};

/// Members are below it; the other folder holds what members older than 2.1 of Patroni read.
const MEMBERS: &str = "members";
const OPTIME: &str = "optime";

/// What was read, and whether nothing happened meanwhile.
struct Looked {
    entries: Vec<Entry>,
    calm: bool,
}

impl ZooKeeper {
    pub(super) async fn look(&self, deadline: Instant) -> Result<Vec<Entry>, DcsError> {
        let (mut eye, begun) = self.eye(deadline).await?;
        loop {
            let (mut wire, idle) = self.open_eye(&mut eye, deadline).await?;
            let outcome = timeout_at(deadline, self.look_on(&mut wire)).await;
            if let Some(done) = self.close_eye(&mut eye, (wire, idle), outcome, begun) {
                return done;
            }
        }
    }

    async fn look_on(&self, wire: &mut Wire) -> Result<Vec<Entry>, Failure> {
        let mut before: Option<Vec<Entry>> = None;
        loop {
            if let Some(looked) = self.look_once(wire).await? {
                if looked.calm || before.as_ref() == Some(&looked.entries) {
                    return Ok(looked.entries);
                }
                before = Some(looked.entries);
            }
        }
    }

    /// `None` if a node vanished between its name and its value.
    async fn look_once(&self, wire: &mut Wire) -> Result<Option<Looked>, Failure> {
        let barrier = [Change::Check {
            path: self.base.clone(),
            version: None,
        }];
        let folder = self.path(MEMBERS);
        let asks = [
            Ask::All(&barrier),
            Ask::Children(&self.base),
            Ask::Children(&folder),
        ];
        let mut replies = wire.ask(&asks).await?.into_iter();
        let begun = replies.next().map_or(0, |reply| reply.zxid);
        let keys = children_of(replies.next())?;
        let members = children_of(replies.next())?;
        let mut names: Vec<String> = Vec::new();
        for key in keys {
            match key.as_str() {
                MEMBERS => {}
                OPTIME => names.push(format!("{OPTIME}/leader")),
                _ => names.push(key),
            }
        }
        names.extend(members.iter().map(|member| format!("{MEMBERS}/{member}")));
        names.sort();
        let paths: Vec<String> = names.iter().map(|name| self.path(name)).collect();
        let asks: Vec<Ask<'_>> = paths.iter().map(|path| Ask::Data(path)).collect();
        let replies = wire.ask(&asks).await?;
        let ended = replies.last().map_or(begun, |reply| reply.zxid);
        let mut entries = Vec::with_capacity(replies.len());
        for (path, reply) in names.into_iter().zip(replies) {
            match node_of(Some(reply))? {
                Some(node) => entries.push(entry(path, node.value, &node.stat)),
                None if path.starts_with(OPTIME) => {}
                None => return Ok(None),
            }
        }
        Ok(Some(Looked {
            entries,
            calm: begun == ended,
        }))
    }
}

fn entry(path: String, value: String, stat: &Stat) -> Entry {
    Entry {
        path,
        value,
        version: version_of(stat.mzxid),
        lease: stat.owner,
    }
}

fn children_of(reply: Option<Reply>) -> Result<Vec<String>, Failure> {
    match reply.map(|reply| reply.result) {
        Some(Ok(bytes)) => Reader(&bytes).texts().ok_or_else(|| nonsense("zookeeper".into())),
        Some(Err(code::NO_NODE)) => Ok(Vec::new()),
        Some(Err(code)) => Err(Failure::Refused(code)),
        None => Err(nonsense("zookeeper".into())),
    }
}
