//! Asking the other members to accept this primary while the DCS does not answer (contract: HA rules §9, REST API §9).
//! Whether to ask, and whom, is decided in `ha`; what their answers are worth as well ([`failsafe::consent`]).
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | [`Canvass::ask`] | members, the right that counts | answers, extended rights | a renewed lock, the loss of the right, the loop's end |
//!
//! Every member is asked again and again, without waiting for the answer to the question before: so slow answers of one
//! do not use up the time of the next attempt, however long the way is.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tracing::{debug, info, warn};

use super::{Agent, lease::Lease};
use crate::{
    client::Client,
    clock::Boottime,
    ha::{
        View,
        failsafe::{self, Answers, Members, Question, Said},
        lease::{Right, interval},
    },
    model::MemberName,
};

/// Questions to one member that may be open at the same time.
const OPEN_MAX: usize = 8;
/// How long a member may take to take note that its promise is not needed any more.
const THANKS_LIMIT: Duration = Duration::from_secs(2);

/// The questions that are being asked, if any.
#[derive(Debug, Default)]
pub(super) struct Canvass {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    of: Members,
    answers: watch::Receiver<Answers>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Canvass {
    /// What has been answered so far; nothing while nobody is asked.
    fn answers(&mut self) -> Answers {
        self.running.take_if(|running| running.task.is_finished());
        self.running
            .as_ref()
            .map(|running| running.answers.borrow().clone())
            .unwrap_or_default()
    }

    /// Asks these members from now on, unless they are being asked.
    fn ask(&mut self, of: &Members, asker: Asker) {
        self.running.take_if(|running| running.task.is_finished());
        if self.running.as_ref().is_some_and(|running| running.of == *of) {
            return;
        }
        let names: Vec<&str> = of.keys().map(MemberName::as_str).collect();
        warn!(members = ?names, "asking the other members to accept this primary without the DCS");
        let (said, answers) = watch::channel(Answers::new());
        let task = tokio::spawn(asker.run(of.clone(), said)).abort_handle();
        self.running = Some(Running {
            of: of.clone(),
            answers,
            task,
        });
    }
}

impl Agent {
    pub(super) fn failsafe_sight(&mut self) -> failsafe::Sight {
        failsafe::Sight {
            promise: self.lease.promised(),
            answers: self.canvass.answers(),
        }
    }

    /// Until when failsafe mode keeps a primary alive: us, or the one we have promised not to lead.
    pub(super) fn failsafe_until(&self) -> Option<Boottime> {
        match self.lease.right() {
            Some(Right::Consent { asked_at, ttl, .. }) => Some(asked_at + ttl),
            Some(Right::Lease(_)) | None => self.lease.promised().map(|promise| promise.until),
        }
    }

    pub(super) fn ask_consent(&mut self, of: &Members, view: &View) {
        let asker = Asker {
            lease: Arc::clone(&self.lease),
            http: self.http.clone(),
            me: json!({
                "name": self.identity.member.0,
                "conn_url": self.identity.conn_url,
                "api_url": self.identity.api_url,
                "slots": self.last_status(view).slots.unwrap_or_default(),
                "ttl": self.promised_ttl().as_secs(),
            }),
            round: u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default(),
        };
        self.canvass.ask(of, asker);
    }

    /// For how long the others have to promise: not less than what the right will count with, whatever is configured
    /// meanwhile.
    fn promised_ttl(&self) -> Duration {
        let configured = self.dynamic.timing.ttl;
        let counted = self.lease.right().map_or(configured, |right| right.hold().ttl);
        let longest = counted.max(configured);
        Duration::from_secs(longest.as_secs() + u64::from(longest.subsec_nanos() > 0))
    }

    /// A lock taken on a view from long ago proves too little: others may have led since, and have gone on without
    /// the DCS (see [`failsafe`]).
    pub(super) fn view_is_old(&self) -> bool {
        let age = self
            .last_cluster
            .as_ref()
            .map(|seen| Boottime::now().since(seen.asked_at));
        age.is_none_or(|age| age >= self.dynamic.timing.ttl / 2)
    }
}

/// Who asks.
struct Asker {
    lease: Arc<Lease>,
    http: Client,
    /// What the others are told of this member (contract: REST API §9).
    me: Value,
    round: u64,
}

/// One answer.
struct Heard {
    from: MemberName,
    said: Said,
}

impl Asker {
    async fn run(self, of: Members, said: watch::Sender<Answers>) {
        let Some(begun_with) = self.lease.right() else {
            return;
        };
        let ttl = begun_with.hold().ttl;
        let losses = *self.lease.losses().borrow();
        let mut rights = self.lease.rights();
        let mut open: JoinSet<Heard> = JoinSet::new();
        let mut number = 0;
        let mut accepted = false;
        let mut tick = tokio::time::interval(interval(ttl));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Cancel-safe, all of them: they wait, and what was answered stays in the set until it is returned.
            tokio::select! {
                _ = tick.tick() => {
                    number += 1;
                    if open.len() < OPEN_MAX * of.len() {
                        for (name, api_url) in &of {
                            open.spawn(self.question(name.clone(), api_url, number, failsafe::usable(ttl)));
                        }
                    }
                }
                Some(Ok(heard)) = open.join_next() => said.send_modify(|answers| note(answers, heard)),
                changed = rights.changed() => if changed.is_err() { return },
            }
            if over(&begun_with, self.lease.right().as_ref()) {
                break;
            }
            let consent = failsafe::consent(&of, &said.borrow(), Boottime::now());
            if let Some(asked_at) = consent
                && self.lease.extend(asked_at)
                && !std::mem::replace(&mut accepted, true)
            {
                info!(
                    from = "primary by the lease",
                    to = "primary by consent",
                    because = "the DCS does not answer, and all other members accept this primary",
                    "going on without the DCS"
                );
            }
        }
        // A proven loss is not the end of postgres yet: then nobody is told to go ahead.
        if *self.lease.losses().borrow() == losses {
            self.give_back(&of, number).await;
        }
    }

    fn question(
        &self,
        from: MemberName,
        api_url: &str,
        number: u64,
        limit: Duration,
    ) -> impl Future<Output = Heard> + Send + 'static {
        let (url, body) = (failsafe_url(api_url), self.body(number));
        let http = self.http.clone();
        async move {
            let asked_at = Boottime::now();
            let said = match http.send(Method::POST, &url, Some(&body), limit).await {
                Ok(answer) if answer.status == 200 && &*answer.body == b"Accepted" => Said::Yes(asked_at),
                Ok(answer) => Said::No(format!("{} {}", answer.status, answer.text())),
                Err(error) => Said::No(error.to_string()),
            };
            debug!(member = %from, ?said, "asked for consent");
            Heard { from, said }
        }
    }

    /// Tells the others that their promises are not needed any more: at best effort, they end by themselves.
    async fn give_back(&self, of: &Members, number: u64) {
        let body = self.body(number);
        let thanks = of.values().map(async |api_url| {
            let url = failsafe_url(api_url);
            let told = self
                .http
                .send(Method::DELETE, &url, Some(&body), THANKS_LIMIT)
                .await;
            debug!(url, ?told, "gave a promise back");
        });
        futures::future::join_all(thanks).await;
    }

    fn body(&self, number: u64) -> Value {
        let mut body = self.me.clone();
        body["round"] = self.round.into();
        body["number"] = number.into();
        body
    }
}

/// `http://host:port/patroni` → `http://host:port/failsafe`.
fn failsafe_url(api_url: &str) -> String {
    let base = api_url.rsplit_once('/').map_or(api_url, |(base, _)| base);
    format!("{base}/failsafe")
}

/// A yes stands until it is over, whatever a later question brings; what is said of the later one is shown.
fn note(answers: &mut Answers, heard: Heard) {
    let newer = match (answers.get(&heard.from), &heard.said) {
        (Some(Said::Yes(old)), Said::Yes(new)) => new > old,
        (Some(Said::Yes(_)), Said::No(_)) | (_, Said::Yes(_)) | (_, Said::No(_)) => true,
    };
    if newer {
        answers.insert(heard.from, heard.said);
    }
}

/// Asking has an end: the lock was renewed since, or there is no right that could be extended.
fn over(begun_with: &Right, now: Option<&Right>) -> bool {
    match now {
        None => true,
        Some(Right::Lease(hold)) => hold.sent_at > begun_with.hold().sent_at,
        Some(Right::Consent { .. }) => false,
    }
}

/// What the API reads from a question.
pub(crate) fn question_of(body: &serde_json::Map<String, Value>) -> Question {
    let number = |key: &str| body.get(key).and_then(Value::as_u64).unwrap_or_default();
    Question {
        round: number("round"),
        number: number("number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcs::Hold;

    /// Answers every question like a member behind a long way: half of it there, half of it back.
    async fn far_member(way: Duration) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let url = format!("http://{}/patroni", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut question = [0; 4096];
                    while let Ok(1..) = stream.read(&mut question).await {
                        tokio::time::sleep(way).await;
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nAccepted";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        url
    }

    #[derive(Debug)]
    struct NoFence;

    impl crate::agent::lease::Fence for NoFence {
        fn arm(&self, _: Boottime, _: i64) {}
        fn disarm(&self) {}
    }

    /// Longer on the way than any fixed limit would allow for, and than the pause between two questions.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn slow_answers_keep_a_primary_going() {
        let ttl = Duration::from_secs(5);
        let way = failsafe::usable(ttl) / 2;
        assert!(way > interval(ttl) * 2);
        let store = crate::dcs::memory::Store::system();
        let lease = Lease::new(Arc::new(store.member("a", ttl)), Arc::new(NoFence), None);
        assert!(lease.acquire().await.expect("reachable"));
        store.set_outage(Some(crate::dcs::memory::Outage::Unreachable));
        let asker = || Asker {
            lease: Arc::clone(&lease),
            http: Client::new(None),
            me: json!({"name": "a"}),
            round: 1,
        };
        let of = Members::from([
            ("b".into(), far_member(way).await),
            ("c".into(), far_member(Duration::ZERO).await),
        ]);
        let mut canvass = Canvass::default();
        canvass.ask(&of, asker());
        let until = Boottime::now() + ttl * 3;
        while Boottime::now() < until {
            lease.beat();
            assert!(lease.counts(), "it has run out");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(matches!(lease.right(), Some(Right::Consent { .. })));
        // Back again: the promises are given back, and nobody is asked any more.
        store.set_outage(None);
        assert!(lease.renew().await.expect("reachable"));
        let ended = async {
            while !canvass.answers().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(ttl, ended).await.expect("ended");
    }

    #[test]
    fn the_question_goes_to_the_base_of_the_api() {
        assert_eq!(failsafe_url("http://h:8008/patroni"), "http://h:8008/failsafe");
    }

    #[test]
    fn an_older_yes_does_not_replace_a_newer_one() {
        let mut answers = Answers::new();
        let heard = |said| Heard {
            from: "b".into(),
            said,
        };
        note(&mut answers, heard(Said::Yes(Boottime(5))));
        note(&mut answers, heard(Said::Yes(Boottime(3))));
        assert_eq!(answers[&"b".into()], Said::Yes(Boottime(5)));
        note(&mut answers, heard(Said::No("gone".into())));
        assert_eq!(answers[&"b".into()], Said::No("gone".into()));
    }

    #[test]
    fn asking_ends_with_a_renewal_or_without_a_right() {
        let lease = |at| {
            Right::Lease(Hold {
                sent_at: Boottime(at),
                ttl: Duration::from_secs(30),
                lease: 1,
            })
        };
        let consent = Right::Consent {
            asked_at: Boottime(9),
            ttl: Duration::from_secs(30),
            lease: 1,
        };
        assert!(!over(&lease(5), Some(&lease(5))));
        assert!(!over(&lease(5), Some(&consent)));
        assert!(over(&lease(5), Some(&lease(6))));
        assert!(over(&lease(5), None));
    }
}
