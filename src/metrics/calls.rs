//! A store whose calls are timed.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::Instant};

use super::Metrics;
use crate::{
    dcs::{Dcs, DcsError, Key, Lock, When, Written},
    model::Cluster,
};

/// Times what is asked of the store behind it.
#[derive(Debug)]
pub struct Timed {
    store: Arc<dyn Dcs>,
    metrics: Arc<Metrics>,
}

impl Timed {
    /// Times this store.
    #[must_use]
    pub fn around(store: Arc<dyn Dcs>, metrics: Arc<Metrics>) -> Arc<dyn Dcs> {
        Arc::new(Self { store, metrics })
    }

    async fn timed<T>(
        &self,
        call: &'static str,
        asked: impl Future<Output = Result<T, DcsError>> + Send,
        refused: impl Fn(&T) -> bool + Send,
    ) -> Result<T, DcsError> {
        // Who gives up waiting drops this; that counts too.
        let mut running = Running {
            metrics: &self.metrics,
            call,
            begun: Instant::now(),
            outcome: "abandoned",
        };
        let answer = asked.await;
        running.outcome = match &answer {
            Ok(value) if refused(value) => "refused",
            Ok(_) => "ok",
            Err(_) => "error",
        };
        answer
    }
}

struct Running<'a> {
    metrics: &'a Metrics,
    call: &'static str,
    begun: Instant,
    outcome: &'static str,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.metrics.called(self.call, self.outcome, self.begun.elapsed());
    }
}

fn not_ours(lock: &Lock) -> bool {
    !matches!(lock, Lock::Held { .. })
}

fn unwritten(written: &Written) -> bool {
    matches!(written, Written::Refused)
}

#[async_trait]
impl Dcs for Timed {
    async fn cluster(&self) -> Result<Cluster, DcsError> {
        self.timed("read", self.store.cluster(), |_| false).await
    }

    async fn acquire(&self) -> Result<Lock, DcsError> {
        self.timed("acquire", self.store.acquire(), not_ours).await
    }

    async fn renew(&self) -> Result<Lock, DcsError> {
        self.timed("renew", self.store.renew(), not_ours).await
    }

    async fn release(&self, status: Option<&str>) -> Result<(), DcsError> {
        self.timed("release", self.store.release(status), |()| false)
            .await
    }

    async fn touch_member(&self, value: &str) -> Result<(), DcsError> {
        self.timed("touch_member", self.store.touch_member(value), |()| false)
            .await
    }

    async fn remove_member(&self) -> Result<(), DcsError> {
        self.timed("remove_member", self.store.remove_member(), |()| false)
            .await
    }

    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError> {
        self.timed("write", self.store.write(key, value, when), unwritten)
            .await
    }

    async fn delete(&self, key: Key, when: When) -> Result<Written, DcsError> {
        self.timed("delete", self.store.delete(key, when), unwritten)
            .await
    }

    async fn adopt(&self, lease: i64) {
        self.store.adopt(lease).await;
    }

    async fn set_timing(&self, ttl: Duration, retry_timeout: Duration) {
        self.store.set_timing(ttl, retry_timeout).await;
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.store.changes()
    }

    fn kind(&self) -> &'static str {
        self.store.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::handle::fixtures::{NOW, leader},
        dcs::memory::Store,
    };

    #[tokio::test]
    async fn every_call_is_counted_with_its_outcome() {
        let metrics = Metrics::new("demo", &"n1".into()).expect("names differ");
        let store = Store::system();
        let timed = |name: &str| {
            let member = Arc::new(store.member(name, Duration::from_secs(30)));
            Timed::around(member, Arc::clone(&metrics))
        };
        let (one, two) = (timed("n1"), timed("n2"));
        assert!(matches!(one.acquire().await, Ok(Lock::Held(_))));
        assert!(matches!(two.acquire().await, Ok(Lock::Lost(_))));
        one.cluster().await.expect("a view");
        store.set_outage(Some(crate::dcs::memory::Outage::Unreachable));
        one.renew().await.expect_err("an outage");
        let page = crate::metrics::in_order(&metrics.render(&leader(), None, NOW));
        for (call, outcome) in [
            ("acquire", "ok"),
            ("acquire", "refused"),
            ("read", "ok"),
            ("renew", "error"),
        ] {
            let line = format!(
                r#"howdah_dcs_call_duration_seconds_count{{call="{call}",name="n1",outcome="{outcome}",scope="demo"}} 1"#
            );
            assert!(page.contains(&line), "{line} is not in {page:#?}");
        }
    }
}
