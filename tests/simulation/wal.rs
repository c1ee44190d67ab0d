//! Write-ahead log with an origin: every writer writes a branch of its own, whatever number its timeline has, so that
//! two histories that only look alike are told apart.

use howdah::model::{HistoryRow, Lsn, Timeline};

/// A branch: what one node has written as one primary. The generation of an acknowledgement.
pub(crate) type BranchId = usize;

#[derive(Debug, Clone)]
pub(crate) struct Branch {
    /// What it branched off, and where.
    pub(crate) parent: Option<Pos>,
    pub(crate) timeline: u32,
    /// Who writes it.
    pub(crate) owner: usize,
    pub(crate) system: u64,
}

/// A position in the tree of all WAL ever written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pos {
    pub(crate) branch: BranchId,
    pub(crate) lsn: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Wal {
    pub(crate) branches: Vec<Branch>,
}

/// Why a replica cannot stream, as PostgreSQL would find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another cluster.
    System,
    /// By numbers: the position is not in the server's history, or ahead of it.
    Position,
    /// The numbers fit and the records do not: replay stops at an invalid record.
    Content,
}

impl Wal {
    pub(crate) fn branch(&mut self, branch: Branch) -> BranchId {
        self.branches.push(branch);
        self.branches.len() - 1
    }

    pub(crate) fn timeline(&self, branch: BranchId) -> u32 {
        self.branches[branch].timeline
    }

    /// `part` is a piece of the history that leads to `whole`.
    pub(crate) fn contains(&self, whole: Pos, part: Pos) -> bool {
        let mut at = whole;
        loop {
            if at.branch == part.branch {
                return part.lsn <= at.lsn;
            }
            match self.branches[at.branch].parent {
                Some(parent) => {
                    at = Pos {
                        lsn: parent.lsn.min(at.lsn),
                        ..parent
                    }
                }
                None => return false,
            }
        }
    }

    /// Where two histories part; `None`: they have nothing in common.
    pub(crate) fn common(&self, a: Pos, b: Pos) -> Option<Pos> {
        let mut at = a;
        loop {
            let mut other = b;
            loop {
                if at.branch == other.branch {
                    let lsn = at.lsn.min(other.lsn);
                    return Some(Pos { lsn, ..at });
                }
                match self.branches[other.branch].parent {
                    Some(parent) => {
                        other = Pos {
                            lsn: parent.lsn.min(other.lsn),
                            ..parent
                        }
                    }
                    None => break,
                }
            }
            let parent = self.branches[at.branch].parent?;
            at = Pos {
                lsn: parent.lsn.min(at.lsn),
                ..parent
            };
        }
    }

    /// The history file of this branch: by timeline numbers, as PostgreSQL writes it.
    pub(crate) fn history(&self, branch: BranchId) -> Vec<HistoryRow> {
        let mut rows = Vec::new();
        let mut at = branch;
        while let Some(parent) = self.branches[at].parent {
            if self.timeline(parent.branch) != self.timeline(at) {
                rows.push(HistoryRow {
                    timeline: Timeline(self.timeline(parent.branch)),
                    lsn: Lsn(parent.lsn),
                    reason: "no recovery target specified".to_owned(),
                    timestamp: None,
                    new_leader: None,
                });
            }
            at = parent.branch;
        }
        rows.reverse();
        rows
    }

    /// Where the branch's timeline begins, by number.
    pub(crate) fn parent(&self, branch: BranchId) -> Option<(Timeline, Lsn)> {
        let mut at = branch;
        while let Some(parent) = self.branches[at].parent {
            if self.timeline(parent.branch) != self.timeline(at) {
                return Some((Timeline(self.timeline(parent.branch)), Lsn(parent.lsn)));
            }
            at = parent.branch;
        }
        None
    }

    /// Whether a replica at `ours` may stream from a server at `theirs` (PostgreSQL: `StartReplication` in
    /// `walsender.c`, `WalReceiverMain` in `walreceiver.c`).
    pub(crate) fn handshake(&self, ours: Pos, theirs: Pos) -> Result<(), Refused> {
        if self.branches[ours.branch].system != self.branches[theirs.branch].system {
            return Err(Refused::System);
        }
        if self.contains(theirs, ours) {
            return Ok(());
        }
        let (mine, server) = (self.timeline(ours.branch), self.timeline(theirs.branch));
        let end = if mine == server {
            Some(theirs.lsn)
        } else {
            let rows = self.history(theirs.branch);
            rows.iter()
                .find(|row| row.timeline.0 == mine)
                .map(|row| row.lsn.0)
        };
        match end {
            Some(end) if ours.lsn <= end && mine <= server => Err(Refused::Content),
            _ => Err(Refused::Position),
        }
    }
}
