//! What only the leader writes, where it differs from what is there: `/status` and `/history`.

use tracing::warn;

use super::{Agent, jobs::store_history};
use crate::{
    dcs::{Key, When},
    ha::{DcsView, View, history},
    model::{Cluster, Lsn, StatusKey, Timeline},
    postgres::query::{LocalView, Where},
};

impl Agent {
    pub(super) async fn leader_duties(&mut self, view: &View) {
        let DcsView::Known { cluster } = &view.dcs else {
            return;
        };
        let Some(answer) = self.sight.answer.clone() else {
            return;
        };
        match &answer.place {
            Where::Primary(primary) => {
                self.write_status(cluster, &answer, primary.flush_lsn).await;
                self.write_history(cluster, primary.timeline).await;
            }
            // Of a standby cluster: the history is the remote cluster's.
            Where::Standby(standby) => {
                let received = standby.received().unwrap_or(Lsn::INVALID);
                let position = received.max(standby.replay_lsn.unwrap_or(Lsn::INVALID));
                self.write_status(cluster, &answer, position).await;
            }
        }
    }

    async fn write_status(&mut self, cluster: &Cluster, answer: &LocalView, flushed: Lsn) {
        let status = self.status_now(cluster, answer, flushed);
        if status == cluster.status {
            return;
        }
        match serde_json::to_string(&status) {
            Ok(text) => {
                if let Err(error) = self
                    .in_time(self.dcs.write(Key::Status, &text, When::Always))
                    .await
                {
                    warn!(%error, "could not write /status");
                }
            }
            Err(error) => warn!(%error, "could not render /status"),
        }
    }

    async fn write_history(&self, cluster: &Cluster, timeline: Timeline) {
        let (local, started) = self.instance.history(timeline);
        let max_rows = self.dynamic.max_timelines_history;
        let stored = cluster.history.as_deref();
        let Some(rows) = history::update(
            stored,
            &local,
            timeline,
            &self.identity.member,
            &started,
            max_rows,
        ) else {
            return;
        };
        if let Err(error) = self.in_time(store_history(&*self.dcs, &rows)).await {
            warn!(%error, "could not write /history");
        }
    }

    /// The status to leave behind with a lock that is released at `end`.
    pub(super) fn status_text(&self, view: &View, end: Lsn) -> Option<String> {
        let status = StatusKey {
            optime: end,
            ..self.last_status(view)
        };
        serde_json::to_string(&status).ok()
    }

    pub(super) fn last_status(&self, view: &View) -> StatusKey {
        match (&view.dcs, &self.last_cluster) {
            (DcsView::Known { cluster }, _) => cluster.status.clone(),
            (DcsView::Down { .. }, Some(seen)) => seen.cluster.status.clone(),
            (DcsView::Down { .. }, None) => StatusKey::default(),
        }
    }
}
